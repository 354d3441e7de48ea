//! Room for what connections need of the kernel: a descriptor each.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Listeners that each take `listen.max_connections`: data and admin.
const LISTENERS: u64 = 2;
/// Everything else: the disk tier's reads and writes, upstream connections, weights, the runtime.
const OTHERS: u64 = 512;

/// Raises the soft limit as far as it is needed and may be. Where that is not enough, says so: past the limit, accepting
/// fails and connections wait, as they do past `listen.max_connections`.
pub(super) fn make_room(max_connections: usize) {
    let wanted = LISTENERS * max_connections as u64 + OTHERS;
    let mut limit = getrlimit(Resource::Nofile);
    // None is no limit.
    let Some(had) = limit.current.filter(|had| *had < wanted) else { return };
    let most = limit.maximum.unwrap_or(wanted).min(wanted);
    limit.current = Some(most);
    let raised = most > had && setrlimit(Resource::Nofile, limit).is_ok();
    let has = if raised { most } else { had };
    if has < wanted {
        tracing::warn!(
            listen.max_connections = max_connections,
            descriptors = has,
            wanted,
            "not every connection that is allowed can be opened: raise `ulimit -n`, or lower listen.max_connections"
        );
    } else {
        tracing::debug!(from = had, to = has, "the limit on descriptors is raised");
    }
}
