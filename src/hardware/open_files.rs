//! How many files this process may have open: each stream is a socket, and both
//! ends of it where the server is in this process too.

/// Files beside the streams: the run directory, the runtime, libraries.
const RESERVE: u64 = 128;

/// Lets this process have `streams` connections open, raising the soft limit
/// where the hard limit allows it. Does nothing where limits are unknown.
///
/// # Errors
/// How many are needed and allowed, and how to allow them.
#[cfg(unix)]
pub fn allow_streams(streams: u64) -> Result<(), String> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let needed = streams.saturating_add(RESERVE);
    let limit = getrlimit(Resource::Nofile);
    // `None` is no limit.
    let Some(soft) = limit.current.filter(|soft| *soft < needed) else { return Ok(()) };
    if let Some(hard) = limit.maximum.filter(|hard| *hard < needed) {
        return Err(format!(
            "{streams} connections at once need {needed} open files, and the hard limit is {hard}"
        ));
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum: limit.maximum }).map_err(
        |error| {
            format!("the limit of open files cannot be raised from {soft} to {needed}: {error}")
        },
    )
}

/// Lets this process have `streams` connections open.
///
/// # Errors
/// Never: where there are no such limits, connections fail one by one.
#[cfg(not(unix))]
pub fn allow_streams(_: u64) -> Result<(), String> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use rustix::process::{Resource, getrlimit};

    use super::*;

    #[test]
    fn limit_is_raised_to_what_is_needed_or_the_remedy_is_named() {
        allow_streams(1).unwrap();
        let before = getrlimit(Resource::Nofile);
        let Some(hard) = before.maximum else { return };
        let error = allow_streams(hard).unwrap_err();
        assert!(error.contains(&format!("the hard limit is {hard}")), "{error}");
        assert_eq!(getrlimit(Resource::Nofile).current, before.current);
        if let Some(soft) = before.current.filter(|soft| soft + RESERVE < hard) {
            allow_streams(soft).unwrap();
            assert_eq!(getrlimit(Resource::Nofile).current, Some(soft + RESERVE));
        }
    }
}
