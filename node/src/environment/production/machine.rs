//! What the machine is: instruction set, memory, cores, and how fast it computes.
//!
//! The speed is measured by a fixed piece of work, because names and clock rates of processors do not
//! compare. It need be right within a factor of √2 only: the ring rounds it to powers of that.

use std::hint::black_box;
use std::time::Duration;

use crate::environment::Machine;

/// Rounds of [`mix`] in one measurement: about 20 ms on the reference machine. Shorter ones are lost in the
/// noise of the operating system, longer ones only delay the start.
const ROUNDS: u32 = 10_000_000;

/// Measurements; the median counts, so that two of them may be disturbed.
const MEASUREMENTS: usize = 5;

/// Rounds in a second on one core of the reference machine, a 2 GHz server core of 2020.
const REFERENCE_ROUNDS_PER_SECOND: f64 = 500e6;

/// Cores of the reference machine.
const REFERENCE_CORES: f64 = 2.0;

/// Measures the machine that the process runs on.
pub fn measure() -> Machine {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    Machine {
        isa: isa(),
        memory_mib: memory_mib(&read("/proc/meminfo"), &read("/sys/fs/cgroup/memory.max")),
        cores,
        speed: speed(median(std::array::from_fn(|_| time_of_rounds())), cores),
    }
}

/// The instruction set as users read it.
fn isa() -> String {
    #[cfg(target_arch = "x86_64")]
    return x86_64(is_x86_feature_detected!("avx512f"), is_x86_feature_detected!("avx2")).to_owned();
    #[cfg(target_arch = "aarch64")]
    return "aarch64 neon".to_owned();
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    std::env::consts::ARCH.to_owned()
}

#[cfg(target_arch = "x86_64")]
fn x86_64(avx512: bool, avx2: bool) -> &'static str {
    match (avx512, avx2) {
        (true, _) => "x86-64 avx512",
        (false, true) => "x86-64 avx2",
        (false, false) => "x86-64",
    }
}

/// The memory from the texts of `/proc/meminfo` and of the control group's limit, whichever is less; 0 when
/// neither tells.
fn memory_mib(meminfo: &str, limit: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| {
        let kib = line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?;
        Some(kib.trim().parse::<u64>().ok()? >> 10)
    });
    // A group without a limit says `max`.
    let limit = limit.trim().parse::<u64>().ok().map(|bytes| bytes >> 20);
    total.into_iter().chain(limit).min().unwrap_or(0)
}

/// The speed relative to the reference machine, with all cores.
fn speed(time_of_rounds: Duration, cores: usize) -> f64 {
    let rounds_per_second = f64::from(ROUNDS) / time_of_rounds.as_secs_f64().max(f64::MIN_POSITIVE);
    rounds_per_second / REFERENCE_ROUNDS_PER_SECOND * cores as f64 / REFERENCE_CORES
}

fn median(mut times: [Duration; MEASUREMENTS]) -> Duration {
    times.sort();
    times[MEASUREMENTS / 2]
}

#[expect(clippy::disallowed_methods, reason = "the speed of a real machine is measured in real time")]
fn time_of_rounds() -> Duration {
    let start = std::time::Instant::now();
    black_box(mix(black_box(ROUNDS)));
    start.elapsed()
}

/// Integer and floating-point work whose every step waits for the one before, so that no compiler can shorten
/// it.
fn mix(rounds: u32) -> (u64, f32) {
    let (mut bits, mut sum) = (0x9e37_79b9_7f4a_7c15_u64, 0f32);
    for _ in 0..rounds {
        // xorshift64 (Marsaglia 2003, "Xorshift RNGs").
        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        sum = sum * 0.5 + (bits >> 40) as f32;
    }
    (bits, sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_least_of_what_there_is_and_what_is_allowed() {
        let meminfo = "MemFree:  1 kB\nMemTotal:       16384000 kB\nSwapTotal: 0 kB\n";
        let check = |meminfo, limit, expected| assert_eq!(memory_mib(meminfo, limit), expected);
        check(meminfo, "", 16_000);
        check(meminfo, "max\n", 16_000);
        check(meminfo, "2147483648\n", 2048);
        check("", "2147483648\n", 2048);
        check("MemTotal: many kB", "", 0);
    }

    #[test]
    fn the_speed_is_relative_and_counts_all_cores() {
        let reference = Duration::from_secs_f64(f64::from(ROUNDS) / REFERENCE_ROUNDS_PER_SECOND);
        let check = |time, cores, expected: f64| assert!((speed(time, cores) - expected).abs() < 1e-6);
        check(reference, 2, 1.0);
        check(reference, 16, 8.0);
        check(reference * 2, 2, 0.5);
    }

    #[test]
    fn the_median_forgives_two_disturbed_measurements() {
        let times = [9, 5, 400, 6, 300].map(Duration::from_millis);
        assert_eq!(median(times), Duration::from_millis(9));
    }

    #[test]
    fn this_machine_is_something() {
        let machine = measure();
        assert!(machine.cores >= 1 && machine.speed > 0.0 && machine.speed.is_finite(), "{machine:?}");
        assert!(machine.isa.starts_with(if cfg!(target_arch = "x86_64") {
            "x86-64"
        } else {
            std::env::consts::ARCH
        }));
    }
}
