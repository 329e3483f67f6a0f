//! The nodes' data directories: plain ones, or disk images that lose power.

use std::path::Path;

use tempfile::TempDir;

use crate::harness::Node;
use crate::image::{Image, Unavailable};

/// Size of an image. It holds the items of a run many times over, because they are rewritten before they are compacted.
const IMAGE_MIB: u64 = 256;
/// `--disk-reserve` of a node on an image.
const RESERVE: &str = "32MiB";

pub(super) struct Disks {
    /// Images by node; empty if no node loses power. Declared before `dir`, so that they are unmounted first.
    images: Vec<Image>,
    power: bool,
    dir: TempDir,
}

impl Disks {
    pub(super) fn new(power: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("annulus-crash-").tempdir();
        let dir = dir.unwrap_or_else(|error| panic!("no directory for a test: {error}"));
        Self { images: Vec::new(), power, dir }
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Create a node that is not started, on a disk of its own.
    pub(super) fn node(&mut self, number: usize, arguments: &[&str]) -> Result<Node, Unavailable> {
        let name = format!("rc_example{}@127.0.0.1", number + 1);
        let mut node = Node::new(&name, self.path(), arguments);
        if self.power {
            let place = |what: &str| self.path().join(format!("{what}-{}", number + 1));
            let image = Image::create(place("image"), place("disk"), IMAGE_MIB)?;
            // The root of the file system has a directory of the file system's own.
            node.data = image.path().join("data");
            node.arguments.extend(["--disk-reserve", RESERVE].map(str::to_owned));
            self.images.push(image);
        }
        Ok(node)
    }

    /// Kill the process, or cut the power of its disk.
    pub(super) fn crash(&mut self, node: &mut Node) {
        // Images are in the order of the nodes, and each node is on its own.
        let Some(image) = self.images.iter_mut().find(|image| node.data.starts_with(image.path())) else {
            return node.kill();
        };
        node.pause();
        let durable = image.copy();
        node.kill();
        image.continue_with(durable);
    }

    /// Keep the directory after the run for inspection, and print its path.
    pub(super) fn keep_directory(&mut self) {
        self.dir.disable_cleanup(true);
        eprintln!("the nodes' directories and logs are kept in {}", self.dir.path().display());
    }
}
