//! Reads the text of `/proc/cpuinfo` and `/proc/loadavg`.
//! Pure: is handed the text, opens no file.

/// SIMD sets that matter for CPU inference, as the kernel spells them.
const X86_FEATURES: [&str; 10] = [
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
];

/// The same on aarch64: the kernel's word, and the word people use.
const ARM_FEATURES: [(&str, &str); 5] =
    [("asimd", "neon"), ("asimddp", "dotprod"), ("bf16", "bf16"), ("i8mm", "i8mm"), ("sve", "sve")];

/// The processor's name, from `/proc/cpuinfo`.
#[must_use]
pub fn name(cpuinfo: &str) -> Option<String> {
    ["model name", "Hardware", "cpu model"]
        .into_iter()
        .find_map(|key| field(cpuinfo, key))
        .map(|name| name.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|name| !name.is_empty())
}

/// SIMD sets that matter for CPU inference, from the first processor of `/proc/cpuinfo`.
#[must_use]
pub fn features(cpuinfo: &str) -> Vec<String> {
    if let Some(flags) = field(cpuinfo, "flags") {
        let flags: Vec<&str> = flags.split_whitespace().collect();
        return X86_FEATURES
            .into_iter()
            .filter(|known| flags.contains(known))
            .map(str::to_owned)
            .collect();
    }
    let flags: Vec<&str> = field(cpuinfo, "Features")
        .map(|text| text.split_whitespace().collect())
        .unwrap_or_default();
    ARM_FEATURES
        .into_iter()
        .filter(|(kernel, _)| flags.contains(kernel))
        .map(|(_, name)| name.to_owned())
        .collect()
}

/// One-minute load average times 100, from `/proc/loadavg`.
#[must_use]
pub fn load_average_percent(loadavg: &str) -> Option<u32> {
    let (whole, hundredths) = loadavg.split_whitespace().next()?.split_once('.')?;
    let whole: u32 = whole.parse().ok()?;
    let hundredths: u32 = hundredths.parse().ok()?;
    whole.checked_mul(100)?.checked_add(hundredths)
}

/// The value of the first `key : value` line.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x86_features_are_those_the_kernel_lists() {
        let cpuinfo = "processor\t: 0\nmodel name\t: Some  Xeon @ 2GHz\n\
                       flags\t\t: fpu avx2 avx512f avx512_vnni amx_tile\n";
        assert_eq!(name(cpuinfo).as_deref(), Some("Some Xeon @ 2GHz"));
        assert_eq!(features(cpuinfo), ["avx2", "avx512f", "avx512_vnni", "amx_tile"]);
    }

    #[test]
    fn arm_features_have_the_names_people_use() {
        assert_eq!(features("Features\t: fp asimd asimddp\n"), ["neon", "dotprod"]);
    }

    #[test]
    fn empty_files_are_absent_facts() {
        assert_eq!(name(""), None);
        assert!(features("").is_empty());
        assert_eq!(load_average_percent(""), None);
    }

    #[test]
    fn load_average_is_in_hundredths() {
        assert_eq!(load_average_percent("12.07 1.00 0.50 1/200 4242\n"), Some(1207));
    }
}
