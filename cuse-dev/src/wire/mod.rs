//! FUSE and CUSE, spoken raw: character devices and device-like files in userspace.
//!
//! No crate speaks this protocol whole: `fuser` has no CUSE and hides an ioctl's argument. This
//! module knows nothing of iommufd and could be a crate of its own. From the bottom up:
//!
//! * [`proto`] the messages' layouts, [`request`] and [`reply`] their typed forms;
//! * [`channel`] one descriptor of a session;
//! * [`mount`] brings a session up: [`mount::fuse`] puts a file or a directory somewhere,
//!   [`mount::cuse`] registers a character device;
//! * [`server`] reads requests and hands them to a [`Handler`]; a watch looks after those that take
//!   longer than they should.
//!
//! ```no_run
//! use std::sync::Arc;
//! use cuse_dev::wire::{Attributes, Errno, Handler, Header, Ioctl, Options, Opened, Reply, Server};
//! use cuse_dev::wire::{mount, proto::OpenFlags};
//!
//! /// Answers every ioctl with 42.
//! struct Oracle;
//!
//! impl Handler for Oracle {
//!     fn attributes(&self, node: u64) -> Result<Attributes, Errno> {
//!         Ok(Attributes::file(node, 0o666))
//!     }
//!     fn open(&self, _: &Header, _: u32) -> Result<Opened, Errno> {
//!         Ok(Opened { fh: 0, flags: OpenFlags::EVENT_FILE })
//!     }
//!     fn ioctl(&self, _: &Header, _: &Ioctl<'_>, reply: Reply) {
//!         reply.ioctl(Ok(42));
//!     }
//! }
//!
//! let mount = mount::fuse(&mount::Root::File { mode: 0o666 }, "oracle")?;
//! mount.attach(c"/tmp/oracle")?;
//! let server = Server::start(mount.channel(), Arc::new(Oracle), Options::default())?;
//! server.wait();
//! # Ok::<(), Errno>(())
//! ```

pub mod channel;
mod dispatch;
pub mod handler;
pub mod mount;
mod patience;
pub mod proto;
pub mod reply;
pub mod request;
pub mod server;
mod watch;

pub use channel::Channel;
pub use handler::{Attributes, Handler, Pace};
pub use nix::errno::Errno;
pub use reply::{Opened, Reply};
pub use request::{Header, Ioctl, Op, ParseError, Poll, Read, Request};
pub use server::{Options, Server};
