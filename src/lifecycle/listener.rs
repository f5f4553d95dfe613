//! Who listens on a port of this machine, for the message that it is taken.
//! Reads `/proc`; where that tells nothing, nobody is named.

use std::fs;

/// The process that listens on a TCP port, as `NAME (process ID)`.
#[must_use]
pub fn on(port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
    let inodes: Vec<u64> =
        tables.iter().flatten().flat_map(|table| listening(table, port)).collect();
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.find(|pid| holds(*pid, &links))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("{} (process {pid})", name.trim()))
}

/// Inodes of the sockets of a `/proc/net/tcp` table that listen on `port`.
fn listening(table: &str, port: u16) -> Vec<u64> {
    const LISTEN: &str = "0A";
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (_, of) = fields.get(1)?.rsplit_once(':')?;
        let here = u16::from_str_radix(of, 16) == Ok(port) && fields.get(3) == Some(&LISTEN);
        here.then(|| fields.get(9)?.parse().ok()).flatten()
    };
    table.lines().skip(1).filter_map(inode).collect()
}

fn holds(pid: u32, links: &[String]) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut targets = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.any(|target| links.iter().any(|link| target.as_os_str() == link.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listeners_of_that_port_are_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0000000000000000 100 0 0 10 0\n\
            1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4243 1 0000000000000000 20 4 30 10 -1\n\
            2: nonsense\n";
        assert_eq!(listening(table, 8080), [4242]);
        assert!(listening(table, 8081).is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn own_listener_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = on(listener.local_addr().unwrap().port()).unwrap();
        assert!(found.contains(&format!("process {}", std::process::id())), "{found}");
    }
}
