//! Counts of the events of a run. Tests require that the events do happen: a run without them proves nothing.

macro_rules! seen {
    ($($name:ident),* $(,)?) => {
        /// Counts of the events of one run, or of many.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub struct Seen {
            $(pub $name: u64,)*
        }

        impl Seen {
            /// Add the counts of another run.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

seen! {
    kills, power_losses, pauses, cuts, jumps, joins, leaves, entries, moved, deploys, rollbacks, undeploys, limits,
    holds, replaces, removes, downs, commits, full_disks, broken_syncs, deaths, wipes, stale_disks, recoveries,
    upgrades, coverages, falls, losses, compared, full, recoveries_apart,
    reads_of_sets, forgiven_sets,
}
