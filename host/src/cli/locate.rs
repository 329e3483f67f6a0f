//! `locate`: shows the partition and the preference list of a key.
//!
//! With `--ring-size` the partition is computed here, without a node and without a preference list.

use annulus_core::keyspace::{RingSize, hash_key};

use super::words::Words;
use super::{CliError, Context};
use annulus_admin::AdminRequest;
use annulus_admin::rows::LocateRow;
use annulus_values::hex;

/// Show the partition and the nodes of a key.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the module, which is the bucket of its keys
    module: String,
    /// The key; `@FILE`, `@-` and `@@` as in `call`
    key: String,
    /// Read the key as hex digits, for keys that are not text
    #[arg(long)]
    hex: bool,
    /// Length of the preference list
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    n: u8,
    /// Compute the partition for a ring of this size, without a node and without a preference list
    #[arg(long)]
    ring_size: Option<u32>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let key = if args.hex {
        hex(&args.key).ok_or_else(|| {
            CliError::Usage(format!(
                "{:?} is not a sequence of pairs of hex digits, as --hex expects",
                args.key
            ))
        })?
    } else {
        Words::new().read(&args.key)?.into_bytes()
    };
    let row = match args.ring_size {
        Some(size) => {
            let size = RingSize::try_from(size).map_err(|error| CliError::Usage(error.to_string()))?;
            locate(size, &args.module, &key)
        }
        None => {
            let connection = context.connect().await?;
            connection.ask(&AdminRequest::Locate { module: args.module, key, n: args.n }).await?
        }
    };
    context.output.show(&row, || render(&row))
}

fn locate(size: RingSize, module: &str, key: &[u8]) -> LocateRow {
    let hash = hash_key(module.as_bytes(), key);
    let partition = size.partition_of(&hash);
    LocateRow {
        hash: hash.to_string(),
        partition: partition.0,
        index: size.index_of(partition),
        preference_list: Vec::new(),
    }
}

fn render(row: &LocateRow) -> String {
    let mut text =
        format!("hash       {}\npartition  {}\nindex      {}\n", row.hash, row.partition, row.index);
    for (at, preferred) in row.preference_list.iter().enumerate() {
        let name = if at == 0 { "nodes" } else { "" };
        text.push_str(&format!("{name:<10} {} ({})\n", preferred.node, preferred.role));
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use annulus_admin::rows::PreferenceRow;

    #[test]
    fn a_key_is_in_the_partition_that_riak_core_computes() {
        let row = locate(RingSize::try_from(64).unwrap(), "foo", b"bar");
        assert_eq!(row.hash, "49d41bea680d96cf005256b77de1ac9a872e0670");
        assert_eq!(
            (row.partition, row.index.as_str()),
            (19, "433883298582611803841718934712646521460354973696")
        );
        let preference_list = vec![
            PreferenceRow { node: "a@h".into(), role: "primary".into() },
            PreferenceRow { node: "b@h".into(), role: "fallback".into() },
        ];
        assert_eq!(
            render(&LocateRow { preference_list, ..row }),
            "hash       49d41bea680d96cf005256b77de1ac9a872e0670\npartition  19\n\
             index      433883298582611803841718934712646521460354973696\n\
             nodes      a@h (primary)\n           b@h (fallback)\n"
        );
    }
}
