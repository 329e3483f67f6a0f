//! The choice of the item format that a release writes (R22).
//!
//! If a release writes a format that its predecessor cannot read, it cannot be rolled back: neither by an operator nor
//! by a deploy that fails halfway through its swaps. Nor can a node that still runs the predecessor receive a
//! partition. A new format is therefore written only from the deploy after the one that introduced it.

use annulus_core::mutants::{self, Mutant};
use annulus_core::state::{Module, Release};
use annulus_wasm::Description;

/// Return the newest format that the current release writes and the previous one reads. Without a previous
/// release, or without a common format, return the newest that the current release writes.
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

/// Return a release's description, or `None` if this build cannot read it.
pub(super) fn described(release: &Release) -> Option<Description> {
    Description::from_cbor(&release.description).ok()
}

/// Return the reason why `target` cannot read the items that the module has written, or `None` if it can.
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

/// Return a format that is not in `reads` but that items in host storage may have, with the version that
/// wrote it. A swap rewrites the items that a guest keeps itself; items in host storage keep the format in which they
/// were written.
pub(super) fn left_in_storage(module: &Module, reads: &[u32]) -> Option<(u64, u32)> {
    unread(module, reads, |release| release.exported.writes_storage)
}

/// Return a format that is not in `reads` but that a member which is away may still write, with the version
/// that the member may still run.
pub(super) fn written_by_who_is_away(module: &Module, reads: &[u32]) -> Option<(u64, u32)> {
    unread(module, reads, |_| true)
}

/// Return the first format that is not in `reads`, with its version, among the formats written by those of
/// the module's releases for which `counts` is true.
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
    fn a_new_format_is_written_once_the_previous_release_reads_it() {
        let (first, second) = (formats(&[1], &[1]), formats(&[1, 2], &[1, 2]));
        assert_eq!(write_format(&second, None), 2);
        assert_eq!(write_format(&second, Some(&first)), 1);
        assert_eq!(write_format(&second, Some(&second)), 2);
        // After a rollback, the format must be one that the abandoned release can read too.
        assert_eq!(write_format(&first, Some(&second)), 1);
        assert_eq!(write_format(&formats(&[1, 2], &[2]), Some(&first)), 2, "nothing in common");
    }

    #[test]
    fn formats_in_host_storage_must_be_readable_by_every_later_release() {
        let kept = |formats: Description| Description {
            exported: Exported { writes_storage: true, ..Exported::default() },
            ..formats
        };
        let old = kept(formats(&[1], &[1]));
        let (both, new) = (kept(formats(&[1, 2], &[1, 2])), kept(formats(&[1, 2], &[2])));
        let back = kept(formats(&[1, 2], &[1]));
        // Version 2 wrote format 2. Version 3 writes format 1 again, but the items in format 2 are still
        // there.
        let module = |of: [&Description; 3]| Module {
            older: vec![release(1, of[0])],
            ..module(&release(3, of[2]), &release(2, of[1]))
        };
        let why = cannot_follow(&module([&old, &new, &back]), &release(4, &old)).unwrap();
        assert!(why.contains("version 2 of shop wrote items in format 2"), "{why}");
        assert_eq!(cannot_follow(&module([&old, &new, &back]), &release(4, &both)), None);
        assert_eq!(written_by_who_is_away(&module([&old, &both, &new]), &[1]), Some((3, 2)));
        // A guest that keeps its own items rewrites them in the current format at a swap.
        let own = [formats(&[1], &[1]), formats(&[1, 2], &[2]), formats(&[1, 2], &[1])];
        assert_eq!(cannot_follow(&module([&own[0], &own[1], &own[2]]), &release(4, &own[0])), None);
        // This does not hold for a member that still runs an earlier release.
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
            sloppy: false,
            had_hints: false,
            storage: Default::default(),
            config: vec![0xa0],
            current: current.clone(),
            previous: Some(previous.clone()),
            older: vec![],
            changed: 1,
        }
    }

    #[test]
    fn a_release_is_compatible_only_if_it_reads_the_format_being_written() {
        let (first, second) = (release(1, &formats(&[1], &[1])), release(2, &formats(&[1, 2], &[1, 2])));
        assert_eq!(cannot_follow(&module(&second, &first), &first), None);
        let third = Release { version: 3, ..second.clone() };
        let why = cannot_follow(&module(&third, &second), &first).unwrap();
        assert!(why.contains("format 2") && why.contains("version 1 does not"), "{why}");
    }
}
