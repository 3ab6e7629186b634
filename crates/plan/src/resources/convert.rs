//! Values of v1 as v2 wants them.

/// `cpu.weight` for cpu shares, as runc 1.3.2 and crun 1.23 and later compute it: a curve through (2, 1), (1024, 100)
/// and (262144, 10000). The older formula was a line through the ends, which put the default of 1024 at 39 and made
/// a container weaker than a process without a cgroup.
pub fn cpu_weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        shares => {
            // Exact in a float: below 2^18.
            let l = f64::from(u32::try_from(shares).unwrap_or(262_144)).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            let weight = 10f64.powf(exponent) - 1e-9;
            // The least weight that is not below the curve; a search, as a float does not turn into an integer
            // without a lossy cast.
            let (mut low, mut high) = (1u32, 10_000u32);
            while low < high {
                let middle = low + (high - low) / 2;
                if f64::from(middle) >= weight { high = middle } else { low = middle + 1 }
            }
            u64::from(low)
        }
    }
}

/// The older line. Only to read what an older runtime wrote.
pub fn linear_cpu_weight(shares: u64) -> u64 {
    match shares {
        0 => 0,
        shares => 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142,
    }
}

/// `io.weight` (1 to 10000) for a block I/O weight (10 to 1000).
pub fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990
}

/// `memory.swap.max` for a limit of memory and swap together; `None`: nothing is to be written.
pub fn swap_max(limit: Option<i64>, swap: Option<i64>) -> Result<Option<String>, &'static str> {
    match (limit, swap) {
        // No memory limit, nothing said about swap: as v1, where both are one.
        (Some(limit), None | Some(0)) if limit < 0 => Ok(Some("max".into())),
        (_, None | Some(0)) => Ok(None),
        (_, Some(swap)) if swap < 0 => Ok(Some("max".into())),
        (Some(limit), Some(swap)) if limit > 0 => match swap.checked_sub(limit) {
            Some(rest) if rest >= 0 => Ok(Some(rest.to_string())),
            _ => Err("counts memory and swap together and is below the memory limit"),
        },
        _ => Err("counts memory and swap together and needs a memory limit"),
    }
}
