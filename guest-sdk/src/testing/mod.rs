//! Test guest code with plain `cargo test`: a host on the test's own thread stands in for a cluster.
//!
//! ```
//! # use annulus_guest::prelude::*;
//! # #[derive(Default)] struct Echo;
//! # #[derive(Commands)] enum Command { Say { word: String } }
//! # impl Vnode for Echo {
//! #     type Command = Command;
//! #     fn handle_command(&mut self, Command::Say { word }: Command) -> Result<Reply, Failure> { reply(word) }
//! # }
//! use annulus_guest::testing::Tester;
//!
//! let echo = Tester::<Echo>::start();
//! assert_eq!(echo.call("say", &["hello".into()]), Ok(Value::from("hello")));
//! assert!(matches!(echo.call("say", &[]), Err(Failure::BadArguments(why)) if why.contains("word")));
//! ```

pub(crate) mod imports;
mod laws;
mod tester;
mod world;

pub use laws::laws;
pub use tester::Tester;
