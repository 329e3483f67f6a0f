//! The host's functions for tests, on the world of this thread's running call.

pub(crate) mod context {
    use crate::Dot;
    use crate::testing::world::current;

    pub fn now_ms() -> u64 {
        current(|world| world.now_ms)
    }
    pub fn next_dot() -> Dot {
        current(|world| world.next_dot())
    }
    pub fn request_id() -> (u64, u64) {
        current(|world| (0, world.request))
    }
    pub fn write_format() -> u32 {
        current(|world| world.write_format)
    }
}

pub(crate) mod log {
    use crate::Level;
    use crate::testing::world::current;

    pub fn write(level: Level, message: &str) {
        current(|world| world.logs.push((level, message.to_owned())));
    }
}

pub(crate) mod storage {
    use crate::coverage::Remaining;
    use crate::storage::Selection;
    use crate::testing::world::{Place, current};
    use crate::{Budget, Item, Page, Version};

    pub fn get(key: &[u8], sort: &[u8]) -> Option<Version> {
        let place = (key.to_vec(), sort.to_vec());
        current(|world| if world.reaches(Some(key)) { world.read(&place) } else { None })
    }

    pub fn put(key: &[u8], sort: &[u8], value: &[u8]) {
        current(|world| world.write(key, sort, Version { value: value.to_vec(), deleted: false }));
    }

    pub fn delete(key: &[u8], sort: &[u8], remains: &[u8]) {
        current(|world| world.write(key, sort, Version { value: remains.to_vec(), deleted: true }));
    }

    /// Return one page of items. The token is the place of the last item: the key's length, the key, the sort
    /// key.
    pub fn scan(what: &Selection, after: Option<&[u8]>, limit: Budget) -> Page {
        let mut places: Vec<(Place, Version)> = current(|world| {
            if !world.reaches(what.key.as_deref()) {
                return Vec::new();
            }
            let mut all = world.items.clone();
            all.extend(world.batch.clone());
            all.into_iter().filter(|(place, version)| selected(what, place, version)).collect()
        });
        if what.reverse {
            places.reverse();
        }
        let after = after.map(place_of);
        let mut places = places
            .into_iter()
            .skip_while(|(place, _)| match &after {
                Some(after) if what.reverse => place >= after,
                Some(after) => place <= after,
                None => false,
            })
            .peekable();
        let mut page = Page { items: Vec::new(), next: None };
        let mut remaining = Remaining::of(limit);
        while let Some((place, version)) = places.next() {
            let (key, sort) = place.clone();
            let full = !remaining.take(key.len() + sort.len() + version.value.len());
            page.items.push(Item { key, sort, value: version.value, deleted: version.deleted });
            if full {
                page.next = places.peek().map(|_| token_of(&place));
                break;
            }
        }
        page
    }

    fn selected(what: &Selection, (key, sort): &Place, version: &Version) -> bool {
        what.key.as_ref().is_none_or(|wanted| wanted == key)
            && what.start.as_ref().is_none_or(|start| sort >= start)
            && what.end.as_ref().is_none_or(|end| sort < end)
            && (what.deleted || !version.deleted)
    }

    fn token_of((key, sort): &Place) -> Vec<u8> {
        let length = u32::try_from(key.len()).expect("a key below 4 GiB");
        [&length.to_be_bytes(), key.as_slice(), sort].concat()
    }

    fn place_of(token: &[u8]) -> Place {
        let (length, rest) = token.split_first_chunk().expect("a token that scan made");
        let (key, sort) = rest.split_at(u32::from_be_bytes(*length) as usize);
        (key.to_vec(), sort.to_vec())
    }
}
