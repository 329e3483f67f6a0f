//! The send rate of a node: a token bucket of bytes.
//!
//! All outgoing transfers of a node share one bucket. A page is read while the bucket has any token, and uses its
//! size in tokens, if necessary into debt: items are sent whole, and the items of writes (R15) are never delayed,
//! only counted. So over any time no more than rate x time is sent, plus a full bucket and the last page. Times are
//! measured from any fixed moment.

use std::time::Duration;

/// The assumed size of a page until it is read.
const PAGE_BYTES: u64 = 64 << 10;

/// A token bucket whose tokens are bytes.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: Option<u64>,
    /// The tokens in the bucket; a debt if negative.
    level: i64,
    /// The time of `level`.
    at: Duration,
}

impl TokenBucket {
    /// Create a full bucket that gets this many tokens per second, or one that never empties if `None`.
    pub fn new(rate: Option<u64>, now: Duration) -> Self {
        Self { rate, level: rate.map_or(0, burst), at: now }
    }

    /// Change the rate. A debt stays, unless the limit is lifted.
    pub fn set_rate(&mut self, rate: Option<u64>, now: Duration) {
        if rate == self.rate {
            return;
        }
        self.fill(now);
        self.level = match (self.rate, rate) {
            (None, Some(rate)) => burst(rate),
            (_, Some(rate)) => self.level.min(burst(rate)),
            (_, None) => 0,
        };
        (self.rate, self.at) = (rate, now);
    }

    /// Take the tokens of one page of the assumed size. [`TokenBucket::settle`] corrects them.
    ///
    /// # Errors
    /// The time until the bucket has tokens again, if it is empty.
    pub fn take_page(&mut self, now: Duration) -> Result<(), Duration> {
        self.fill(now);
        let Some(rate) = self.rate else { return Ok(()) };
        if self.level > 0 {
            self.level -= signed(PAGE_BYTES);
            return Ok(());
        }
        let lacking = u128::from(self.level.unsigned_abs()) + 1;
        let nanos = (lacking * 1_000_000_000).div_ceil(u128::from(rate.max(1)));
        Err(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// Correct the tokens taken for a page to the page's real size.
    pub fn settle(&mut self, bytes: u64) {
        if self.rate.is_some() {
            self.level = self.level.saturating_add(signed(PAGE_BYTES)).saturating_sub(signed(bytes));
        }
    }

    /// Take the tokens for the items of a write.
    pub fn spend(&mut self, bytes: u64) {
        if self.rate.is_some() {
            self.level = self.level.saturating_sub(signed(bytes));
        }
    }

    fn fill(&mut self, now: Duration) {
        let Some(rate) = self.rate.filter(|rate| *rate > 0) else { return };
        let passed = now.saturating_sub(self.at).as_nanos();
        let gained = passed * u128::from(rate) / 1_000_000_000;
        // The time of only whole tokens is consumed, so that frequent calls lose nothing.
        let used = (gained * 1_000_000_000).div_ceil(u128::from(rate));
        self.at += Duration::from_nanos(u64::try_from(used).unwrap_or(u64::MAX));
        let gained = i64::try_from(gained).unwrap_or(i64::MAX);
        self.level = self.level.saturating_add(gained);
        if self.level >= burst(rate) {
            (self.level, self.at) = (burst(rate), self.at.max(now));
        }
    }
}

/// Return the tokens of a full bucket: those of a tenth of a second, or of a page.
fn burst(rate: u64) -> i64 {
    signed((rate / 10).max(PAGE_BYTES))
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Return the bytes sent within some seconds if pages of this size are read as soon as the bucket allows.
    fn sent(rate: Option<u64>, page: u64, seconds: u64) -> u64 {
        let (mut bucket, mut now, mut sent) = (TokenBucket::new(rate, Duration::ZERO), Duration::ZERO, 0);
        while now < Duration::from_secs(seconds) {
            match bucket.take_page(now) {
                Ok(()) => {
                    bucket.settle(page);
                    sent += page;
                    now += Duration::from_micros(10);
                }
                Err(wait) => now += wait,
            }
        }
        sent
    }

    #[test]
    fn no_more_is_sent_than_the_rate_allows_and_not_much_less() {
        for rate in [1 << 10, 100_000, 1 << 20, 50 << 20] {
            for page in [1000, PAGE_BYTES, 5 << 20] {
                let (went, seconds) = (sent(Some(rate), page, 20), 20);
                let slack = u64::try_from(burst(rate)).unwrap_or(0) + page;
                assert!(went <= rate * seconds + slack, "{went} at {rate} in pages of {page}");
                assert!(went + slack >= rate * seconds, "only {went} at {rate} in pages of {page}");
            }
        }
        assert_eq!(sent(None, 1000, 1), 100_000_000);
    }

    #[test]
    fn writes_are_counted_and_a_new_rate_counts_at_once() {
        let (mut bucket, second) = (TokenBucket::new(Some(100_000), Duration::ZERO), Duration::from_secs(1));
        assert_eq!(bucket.take_page(Duration::ZERO), Ok(()));
        bucket.settle(PAGE_BYTES);
        bucket.spend(1_000_000);
        let wait = bucket.take_page(Duration::ZERO).unwrap_err();
        assert!(wait > 9 * second && wait < 11 * second, "{wait:?}");
        bucket.set_rate(Some(1_000_000), second);
        let wait = bucket.take_page(second).unwrap_err();
        assert!(wait < second, "{wait:?}");
        bucket.set_rate(None, second);
        assert_eq!(bucket.take_page(second), Ok(()));
        bucket.set_rate(Some(5000), second);
        assert_eq!(bucket.take_page(second), Ok(()), "nothing is owed");
    }
}
