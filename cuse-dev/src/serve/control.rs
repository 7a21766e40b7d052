//! The control socket of the daemon ([`crate::control`]), for root and the daemon's own user.
//!
//! It is bound while the daemon may still make files, and taken away by the [janitor](super::janitor),
//! as the daemon itself may not remove any.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use engine::Engine;

use super::{Error, Options};
use crate::control::{Server, place, server::Subject};

/// Listens at `asked`, or where `softiommu show` looks. A place that nobody asked for is no reason to
/// fail.
pub(super) fn listen(asked: Option<&Path>) -> Result<Option<Server>, Error> {
    let path = match asked {
        Some(path) => Ok(path.to_owned()),
        None => place::socket_of(std::process::id()),
    };
    match path.and_then(|path| Server::bind(&path)) {
        Ok(server) => Ok(Some(server)),
        Err(error) if asked.is_some() => Err(Error::Setup("listen at the control socket", error)),
        Err(error) => {
            tracing::warn!(%error, "no control socket");
            Ok(None)
        }
    }
}

/// Answers from here on.
pub(super) fn start(server: &Server, engine: &Arc<Engine>, options: &Options) -> Result<(), Error> {
    let subject = Subject {
        engine: engine.clone(),
        warnings: options.warnings.clone(),
        pid: std::process::id(),
        program: format!("serve /dev/{}", options.name),
        since: Instant::now(),
    };
    server.start(subject).map_err(|error| Error::Setup("start threads", error))
}
