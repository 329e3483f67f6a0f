//! Properties of [`Pacing`] over random events, in virtual time.

#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;
use crate::state::EffectiveLimits;

const MS: Duration = Duration::from_millis(1);

fn unlimited() -> SendLimiter {
    limited(None)
}

fn limited(bytes_per_second: Option<u64>) -> SendLimiter {
    let limits = EffectiveLimits { outgoing: 1, incoming: 1, bytes_per_second, paused: false };
    SendLimiter::new(limits, Duration::ZERO)
}

fn page() -> PageRequest {
    PageRequest { attempt: 1, module: ModuleUid(1), after: None }
}

/// Return the pacing of a transfer that has its permit and is started.
fn running() -> Pacing {
    let mut pacing = Pacing::default();
    assert_eq!(pacing.next(Duration::ZERO, false), Some(Effect::RequestPermit));
    pacing.handle(Event::Permit { granted: true }, Duration::ZERO);
    assert_eq!(pacing.next(Duration::ZERO, false), Some(Effect::Start));
    pacing.handle(Event::Started, Duration::ZERO);
    assert_eq!(pacing.next(Duration::ZERO, false), None);
    pacing
}

#[derive(Clone, Debug)]
enum Step {
    Event(Event),
    Urgent(bool),
    Pass(u64),
    /// Sleep until the pacing wants to be woken.
    Sleep,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (any::<bool>(), any::<bool>()).prop_map(|(here, there)| Step::Event(Event::Paused { here, there })),
        any::<bool>().prop_map(|granted| Step::Event(Event::Permit { granted })),
        Just(Step::Event(Event::PageWanted(page()))),
        Just(Step::Event(Event::Progress)),
        any::<bool>().prop_map(|busy| Step::Event(Event::Failed { busy })),
        Just(Step::Event(Event::Abandoned)),
        any::<bool>().prop_map(Step::Urgent),
        (0..12_000_u64).prop_map(Step::Pass),
        Just(Step::Sleep),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    /// The driver sees that nothing starts, retries or continues without a granted permit, in a pause or before the
    /// back-off is over, unless the sender is urgent, and that `next` eventually returns `None`.
    #[test]
    fn a_transfer_runs_only_with_a_permit_outside_of_pauses_and_after_its_back_off(
        failures in 0..20_u32,
        steps in steps(),
    ) {
        let mut now = Duration::from_secs(7);
        let mut pacing = Pacing::after_failures(failures, now);
        let (mut permit, mut paused, mut urgent, mut held) = (None, false, false, false);
        let mut started = false;
        let mut due = (failures > 0).then(|| now + pause_after(failures));
        for step in steps {
            match step {
                Step::Event(event) => {
                    match event {
                        Event::Paused { here, there } => paused = here || there,
                        Event::Permit { granted } => permit = permit.map(|_| granted),
                        Event::Failed { busy } => {
                            pacing.handle(Event::Failed { busy }, now);
                            let at = pacing.retry_at(now).unwrap();
                            prop_assert!(at >= now + FIRST_PAUSE && at <= now + LONGEST_PAUSE);
                            prop_assert!(!busy || at <= now + LONGEST_PAUSE_WHILE_BUSY);
                            (permit, due) = (None, Some(at));
                            continue;
                        }
                        Event::Abandoned => permit = None,
                        _ => {}
                    }
                    pacing.handle(event, now);
                }
                // A sender that is not started is never urgent.
                Step::Urgent(is) => urgent = is && started,
                Step::Pass(ms) => now += MS * u32::try_from(ms).unwrap(),
                Step::Sleep => now = pacing.wake_at().map_or(now, |at| at.max(now)),
            }
            let mut rounds = 0;
            while let Some(effect) = pacing.next(now, urgent) {
                rounds += 1;
                prop_assert!(rounds < 6, "{pacing:?} asks for {effect:?} without an end");
                let holds = paused || permit != Some(true);
                let backs_off = due.is_some_and(|due| due > now);
                match effect {
                    Effect::RequestPermit => {
                        prop_assert!(permit.is_none() && !urgent && !backs_off);
                        permit = Some(false);
                    }
                    Effect::Start => {
                        prop_assert!(!started && !holds && !backs_off);
                        (started, due) = (true, None);
                        pacing.handle(Event::Started, now);
                    }
                    Effect::Hold(hold) => {
                        prop_assert_eq!(hold, holds);
                        prop_assert_ne!(hold, held);
                        held = hold;
                    }
                    Effect::Retry => {
                        prop_assert!(started && (urgent || !holds) && due.take().is_some_and(|due| due <= now));
                    }
                }
            }
            prop_assert_eq!(pacing.wants_permit(), permit.is_some());
            // The transfer sleeps only while nothing is due.
            prop_assert!(pacing.wake_at().is_none_or(|at| at > now), "{pacing:?} at {now:?}");
            let holds = paused || permit != Some(true);
            prop_assert!(!started || held == holds);
            prop_assert!(due.is_none_or(|due| due > now || (holds && !urgent)), "a retry is due: {pacing:?}");
        }
    }
}

#[test]
fn pauses_double_up_to_a_limit_and_a_busy_receiver_is_asked_again_sooner() {
    let pauses: Vec<u128> = (0..9).map(|failures| pause_after(failures).as_millis()).collect();
    assert_eq!(pauses, [100, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    assert_eq!(pause_after(u32::MAX), LONGEST_PAUSE);
    let mut pacing = running();
    for _ in 0..9 {
        pacing.handle(Event::Failed { busy: true }, Duration::ZERO);
    }
    assert_eq!(pacing.retry_at(Duration::ZERO), Some(LONGEST_PAUSE_WHILE_BUSY));
}

#[test]
fn failures_are_forgotten_only_after_a_while_of_progress() {
    let mut pacing = running();
    for _ in 0..3 {
        pacing.handle(Event::Failed { busy: false }, Duration::ZERO);
    }
    pacing.handle(Event::Progress, FORGET_AFTER);
    pacing.handle(Event::Failed { busy: false }, FORGET_AFTER);
    assert_eq!(pacing.retry_at(FORGET_AFTER), Some(FORGET_AFTER + pause_after(4)));
    let later = FORGET_AFTER * 2 + MS;
    pacing.handle(Event::Progress, later);
    pacing.handle(Event::Failed { busy: false }, later);
    assert_eq!(pacing.retry_at(later), Some(later + FIRST_PAUSE));
}

#[test]
fn a_failure_gives_the_permit_back_until_the_retry_is_due() {
    let mut pacing = running();
    pacing.handle(Event::Failed { busy: false }, Duration::ZERO);
    assert!(!pacing.wants_permit());
    assert_eq!(pacing.next(Duration::ZERO, false), Some(Effect::Hold(true)));
    assert_eq!(pacing.next(Duration::ZERO, false), None);
    assert_eq!((pacing.wake_at(), pacing.waits_for(MS, false)), (Some(FIRST_PAUSE), Some(Wait::Retry)));
    assert_eq!(pacing.next(FIRST_PAUSE, false), Some(Effect::RequestPermit));
    assert_eq!(pacing.next(FIRST_PAUSE, false), None);
    assert_eq!((pacing.wake_at(), pacing.waits_for(FIRST_PAUSE, false)), (None, Some(Wait::Permit)));
    pacing.handle(Event::Permit { granted: true }, FIRST_PAUSE);
    assert_eq!(pacing.next(FIRST_PAUSE, false), Some(Effect::Hold(false)));
    assert_eq!(pacing.next(FIRST_PAUSE, false), Some(Effect::Retry));
    assert_eq!(pacing.next(FIRST_PAUSE, false), None);
}

#[test]
fn a_pause_holds_all_but_an_urgent_transfer() {
    let mut pacing = running();
    pacing.handle(Event::Paused { here: false, there: true }, MS);
    assert_eq!(pacing.next(MS, false), Some(Effect::Hold(true)));
    assert_eq!(pacing.waits_for(MS, false), Some(Wait::PausedThere));
    pacing.handle(Event::Failed { busy: false }, MS);
    let due = MS + FIRST_PAUSE;
    assert_eq!(pacing.next(due, false), Some(Effect::RequestPermit));
    pacing.handle(Event::Permit { granted: true }, due);
    assert_eq!(pacing.next(due, false), None, "a retry waits for the end of the pause");
    assert_eq!(pacing.next(due, true), Some(Effect::Retry), "but not that of a sealed partition");
    assert_eq!(pacing.waits_for(due, true), None);
}

#[test]
fn a_page_waits_for_the_rate_and_is_dropped_with_the_transfer() {
    let mut limiter = limited(Some(64 << 10));
    let mut pacing = running();
    assert_eq!(pacing.take_page(&mut limiter, MS), None, "none is wanted");
    pacing.handle(Event::PageWanted(page()), MS);
    assert_eq!(pacing.take_page(&mut limiter, MS), Some(page()));
    limiter.settle_page(128 << 10);
    pacing.handle(Event::PageWanted(page()), MS);
    assert_eq!(pacing.take_page(&mut limiter, MS), None);
    let due = pacing.wake_at().unwrap();
    assert!(due > MS && pacing.waits_for(MS, false) == Some(Wait::Rate));
    assert_eq!(pacing.clone().take_page(&mut limiter.clone(), due), Some(page()));
    pacing.handle(Event::Abandoned, MS);
    assert_eq!((pacing.take_page(&mut unlimited(), due), pacing.wake_at()), (None, None));
}
