//! Reads the text of files under `/proc`. Pure: is handed the text, opens no
//! file; what does not parse is absent. Formats: proc(5).

/// Clock ticks a second in `/proc/PID/stat`: `USER_HZ` is 100 on every
/// architecture that yardstick is built for, whatever the kernel's own HZ.
const TICK_NS: u64 = 10_000_000;

/// State of a listening socket in `/proc/net/tcp` (`TCP_LISTEN`).
const LISTEN: &str = "0A";

/// Parts of `/proc/PID/stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The command's name, at most 15 bytes.
    pub name: String,
    /// Parent.
    pub parent: u32,
    /// Process group.
    pub group: u32,
    /// Processor time of the process and of its children that ended and were waited for.
    pub cpu_ns: u64,
    /// Page faults that had to read, with those children's.
    pub major_faults: u64,
    /// Whether it has ended and only waits to be waited for.
    pub is_zombie: bool,
}

/// Parses `/proc/PID/stat`. The name may hold spaces and parentheses.
#[must_use]
pub fn stat(text: &str) -> Option<Stat> {
    let open = text.find('(')?;
    let close = text.rfind(')')?;
    let name = text.get(open + 1..close)?.to_owned();
    // Fields from the third, `state`, on.
    let fields: Vec<&str> = text.get(close + 1..)?.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let sum = |which: &[usize]| {
        which.iter().try_fold(0_u64, |sum, field| Some(sum.saturating_add(number(*field)?)))
    };
    Some(Stat {
        name,
        parent: u32::try_from(number(4)?).ok()?,
        group: u32::try_from(number(5)?).ok()?,
        // utime, stime, cutime, cstime.
        cpu_ns: sum(&[14, 15, 16, 17])?.saturating_mul(TICK_NS),
        // majflt, cmajflt.
        major_faults: sum(&[12, 13])?,
        is_zombie: matches!(fields.first(), Some(&("Z" | "X"))),
    })
}

/// A line `KEY: N kB` of `/proc/meminfo`, `/proc/PID/status` or `smaps_rollup`, in bytes.
#[must_use]
pub fn kib_field(text: &str, key: &str) -> Option<u64> {
    let line = text
        .lines()
        .find(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')))?;
    let kib: u64 = line[key.len() + 1..].trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// `read_bytes` of `/proc/PID/io`: what storage was asked for on its behalf.
#[must_use]
pub fn read_bytes(io: &str) -> Option<u64> {
    io.lines().find_map(|line| line.strip_prefix("read_bytes:"))?.trim().parse().ok()
}

/// `SigIgn` of `/proc/PID/status`: bit N - 1 is signal N.
#[must_use]
pub fn ignored(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// Inodes of the sockets in `/proc/net/tcp` or `tcp6` that listen on `port`.
#[must_use]
pub fn listeners(tcp: &str, port: u16) -> Vec<u64> {
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (_, local) = fields.get(1)?.rsplit_once(':')?;
        let listens = u16::from_str_radix(local, 16) == Ok(port) && fields.get(3) == Some(&LISTEN);
        // An inode of 0 is a socket that is going away.
        listens.then(|| fields.get(9)?.parse().ok()).flatten().filter(|inode| *inode != 0)
    };
    tcp.lines().skip(1).filter_map(inode).collect()
}

/// The inode in the target of a link below `/proc/PID/fd`, where that is a socket.
#[must_use]
pub fn socket_inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STAT: &str = "4242 (a (b) c) S 17 4240 4240 0 -1 4194560 900 80 7 2 250 30 11 9 20 0 5 0 \
                        123456 1000000 2048 18446744073709551615";

    #[test]
    fn stat_is_read_past_a_name_with_parentheses() {
        let found = stat(STAT).unwrap();
        assert_eq!((found.name.as_str(), found.parent, found.group), ("a (b) c", 17, 4240));
        // 250 + 30 + 11 + 9 ticks of 10 ms.
        assert_eq!(found.cpu_ns, 3_000_000_000);
        assert_eq!((found.major_faults, found.is_zombie), (9, false));
        assert!(stat(&STAT.replace(") S", ") Z")).unwrap().is_zombie);
        assert_eq!(stat("4242 (cut) S 17"), None);
    }

    #[test]
    fn memory_is_told_by_whole_keys() {
        let status = "Name:\tx\nVmRSS:\t    1760 kB\nRssAnon:\t     112 kB\n";
        assert_eq!(kib_field(status, "VmRSS"), Some(1760 << 10));
        assert_eq!(kib_field(status, "Rss"), None);
        assert_eq!(kib_field("Pss: 3 pages\n", "Pss"), None);
        assert_eq!(kib_field("MemTotal:       24 kB\n", "MemTotal"), Some(24 << 10));
        assert_eq!(kib_field("", "MemTotal"), None);
        assert_eq!(ignored("SigBlk:\t0\nSigIgn:\t0000000000001001\n"), Some(0x1001));
        assert_eq!(ignored("SigIgn:\tx\n"), None);
        assert_eq!(read_bytes("rchar: 5\nread_bytes: 4096\n"), Some(4096));
    }

    #[test]
    fn listeners_are_told_from_connections_on_the_same_port() {
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 9001 1 x\n\
                   1: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000  0 0 9002 1 x\n\
                   2: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 9003 1 x\n";
        assert_eq!(listeners(tcp, 0x1F90), [9001]);
        let tcp6 = "head\n 0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 77 1\n";
        assert_eq!(listeners(tcp6, 0x1F90), [77]);
        assert_eq!(socket_inode("socket:[9001]"), Some(9001));
        assert_eq!(socket_inode("/dev/null"), None);
    }

    proptest! {
        #[test]
        fn no_text_brings_the_parsers_down(text in "\\PC{0,200}", cut in 0_usize..140) {
            let _ = (stat(&text), kib_field(&text, "VmRSS"), read_bytes(&text), ignored(&text));
            let _ = (listeners(&text, 80), socket_inode(&text));
            let _ = stat(STAT.get(..cut).unwrap_or(STAT));
        }
    }
}
