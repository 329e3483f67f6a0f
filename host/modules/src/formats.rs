//! Which format of its items a release is told to write (R22).
//!
//! A release that writes a format which the one before cannot read leaves no way back: not for an
//! operator, not for a deploy that fails half way through its swaps, and not for the nodes that
//! still run the one before and are to take a partition over. So the newest format waits for the deploy
//! after the one that brought it.

use annulus_core::mutants::{self, Mutant};
use annulus_core::state::{Module, Release};
use annulus_wasm::Description;

/// The newest format that the current release writes and the previous one reads. The newest that it
/// writes where there is no previous one, or none that they have in common.
pub(super) fn write_format(current: &Description, previous: Option<&Description>) -> u32 {
    let newest = |formats: &mut dyn Iterator<Item = u32>| formats.max();
    let previous = previous.filter(|_| !mutants::on(Mutant::WriteTheNewestFormat));
    let common = previous.and_then(|previous| {
        let mut both =
            current.writes_formats.iter().copied().filter(|format| previous.reads_formats.contains(format));
        newest(&mut both)
    });
    common.or_else(|| newest(&mut current.writes_formats.iter().copied())).unwrap_or(1)
}

/// A release's own words; `None` if this build cannot read them.
pub(super) fn described(release: &Release) -> Option<Description> {
    Description::from_cbor(&release.description).ok()
}

/// Says why a release cannot take over what is written; `None` if it can.
pub(super) fn cannot_follow(module: &Module, target: &Release) -> Option<String> {
    let (Some(current), Some(next)) = (described(&module.current), described(target)) else {
        return Some("the description of one of the releases cannot be read by this build".to_owned());
    };
    let previous = module.previous.as_ref().and_then(described);
    let written = write_format(&current, previous.as_ref());
    if mutants::on(Mutant::FollowUnread) {
        return None;
    }
    if !next.reads_formats.contains(&written) {
        return Some(format!(
            "version {} of {} writes its items in format {written}, and version {} does not read that",
            module.current.version, module.name, target.version
        ));
    }
    let (version, format) = left_in_storage(module, &next.reads_formats)?;
    Some(format!(
        "version {version} of {} wrote items in format {format}, which host storage may still have, and version {} \
         does not read that",
        module.name, target.version
    ))
}

/// A format that a release does not read and that the host may have items in, with the release that wrote
/// them. A swap writes what a guest keeps itself anew; what the host keeps stays as it was written.
pub(super) fn left_in_storage(module: &Module, reads: &[u32]) -> Option<(u64, u32)> {
    unread(module, reads, |release| release.exported.writes_storage)
}

/// A format that a release does not read and that a member which was away since may still write, with the
/// release that it may still run.
pub(super) fn written_by_who_is_away(module: &Module, reads: &[u32]) -> Option<(u64, u32)> {
    unread(module, reads, |_| true)
}

/// What those of a module's releases have written that count.
fn unread(module: &Module, reads: &[u32], counts: impl Fn(&Description) -> bool) -> Option<(u64, u32)> {
    let releases: Vec<_> = module.releases().map(|release| (release.version, described(release))).collect();
    let before = |at: usize| releases.get(at + 1).and_then(|(_, before)| before.as_ref());
    let written = releases.iter().enumerate().filter_map(|(at, (version, release))| {
        let release = release.as_ref().filter(|release| counts(release))?;
        Some((*version, write_format(release, before(at))))
    });
    written.into_iter().find(|(_, format)| !reads.contains(format))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use annulus_core::ids::{Digest, ModuleUid};
    use annulus_wasm::Exported;

    fn formats(reads: &[u32], writes: &[u32]) -> Description {
        Description {
            name: "shop".into(),
            version: "1".into(),
            doc: String::new(),
            commands: vec![],
            config: vec![],
            writes_formats: writes.to_vec(),
            reads_formats: reads.to_vec(),
            exported: Default::default(),
        }
    }

    #[test]
    fn a_new_format_is_written_once_the_release_before_reads_it() {
        let (first, second) = (formats(&[1], &[1]), formats(&[1, 2], &[1, 2]));
        assert_eq!(write_format(&second, None), 2);
        assert_eq!(write_format(&second, Some(&first)), 1);
        assert_eq!(write_format(&second, Some(&second)), 2);
        // Back again: what the release that was left can read too.
        assert_eq!(write_format(&first, Some(&second)), 1);
        assert_eq!(write_format(&formats(&[1, 2], &[2]), Some(&first)), 2, "nothing in common");
    }

    #[test]
    fn what_the_host_keeps_must_be_read_by_every_later_release() {
        let kept = |formats: Description| Description {
            exported: Exported { writes_storage: true, ..Exported::default() },
            ..formats
        };
        let old = kept(formats(&[1], &[1]));
        let (both, new) = (kept(formats(&[1, 2], &[1, 2])), kept(formats(&[1, 2], &[2])));
        let back = kept(formats(&[1, 2], &[1]));
        // Version 2 wrote format 2; version 3 writes format 1 again, and its items in format 2 are still there.
        let module = |of: [&Description; 3]| Module {
            older: vec![release(1, of[0])],
            ..module(&release(3, of[2]), &release(2, of[1]))
        };
        let why = cannot_follow(&module([&old, &new, &back]), &release(4, &old)).unwrap();
        assert!(why.contains("version 2 of shop wrote items in format 2"), "{why}");
        assert_eq!(cannot_follow(&module([&old, &new, &back]), &release(4, &both)), None);
        assert_eq!(written_by_who_is_away(&module([&old, &both, &new]), &[1]), Some((3, 2)));
        // A guest takes its own items over in the format of the day.
        let own = [formats(&[1], &[1]), formats(&[1, 2], &[2]), formats(&[1, 2], &[1])];
        assert_eq!(cannot_follow(&module([&own[0], &own[1], &own[2]]), &release(4, &own[0])), None);
        // But not where it still runs an earlier release.
        assert_eq!(written_by_who_is_away(&module([&own[0], &own[1], &own[2]]), &[1]), Some((2, 2)));
    }

    fn release(version: u64, description: &Description) -> Release {
        Release {
            version,
            digest: Digest([1; 32]),
            bytes: 1,
            description: description.to_cbor(),
            config: None,
            call_ms: None,
        }
    }

    fn module(current: &Release, previous: &Release) -> Module {
        Module {
            uid: ModuleUid(1),
            name: "shop".into(),
            n: 1,
            r: 1,
            w: 1,
            storage: Default::default(),
            config: vec![0xa0],
            current: current.clone(),
            previous: Some(previous.clone()),
            older: vec![],
            changed: 1,
        }
    }

    #[test]
    fn a_release_follows_only_if_it_reads_what_is_written() {
        let (first, second) = (release(1, &formats(&[1], &[1])), release(2, &formats(&[1, 2], &[1, 2])));
        assert_eq!(cannot_follow(&module(&second, &first), &first), None);
        let third = Release { version: 3, ..second.clone() };
        let why = cannot_follow(&module(&third, &second), &first).unwrap();
        assert!(why.contains("format 2") && why.contains("version 1 does not"), "{why}");
    }
}
