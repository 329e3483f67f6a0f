//! The smallest vnode: returns the partition that was asked.
use annulus_guest::prelude::*;

#[derive(Default)]
struct Ping;

#[derive(Commands)]
enum Command {
    /// Return the partition that was asked.
    Ping,
}

impl Vnode for Ping {
    type Command = Command;
    fn handle_command(&mut self, Command::Ping: Command) -> Result<Reply, Failure> {
        info!("Received ping command");
        reply(("pong", host::partition().id))
    }
}

export!(Ping);

#[cfg(test)]
mod tests {
    use super::*;
    use annulus_guest::testing::Tester;

    #[test]
    fn answers_with_its_partition_and_logs() {
        let at = Partition { id: 17, ring_size: 64 };
        let ping = Tester::<Ping>::start_with(at, Config::default()).expect("it has no settings");
        assert_eq!(ping.call("ping", &[]), Ok(Value::Array(vec!["pong".into(), 17.into()])));
        assert_eq!(ping.logs(), [(annulus_guest::Level::Info, "Received ping command".to_owned())]);
        assert_eq!(ping.call("pong", &[]), Err(Failure::UnknownCommand));
    }
}
