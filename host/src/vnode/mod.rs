//! Vnodes: master, actor, mailbox.
