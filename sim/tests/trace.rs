//! The trace tells all: what was sent and what arrived, what clients asked and what they were answered.

use std::collections::BTreeMap;
use std::time::Duration;

use roost_sim::run::{Options, run};
use roost_sim::trace::Keep;

/// Who sent a packet, to whom, and its bytes.
type Packet<'a> = (&'a str, &'a str, &'a str);

/// A line's words behind its time and its host: `10.0.0.1:7400 -> 10.0.0.2:7401 1200 bytes`, perhaps with
/// what became of it.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().skip(2).collect()
}

#[test]
fn what_arrives_was_sent_and_every_answer_is_a_line() {
    let options = Options { safety: Duration::from_secs(5), keep: Keep::All, ..Options::new(11) };
    let report = run(options);
    assert_eq!(report.failure, None);
    let lines = &report.trace.lines;
    assert_eq!(lines.len() as u64, report.trace.count);
    let mut under_way: BTreeMap<Packet<'_>, u64> = BTreeMap::new();
    let mut arrived = 0;
    for line in lines {
        match words(line)[..] {
            [from, "->", to, bytes, "bytes"] => *under_way.entry((from, to, bytes)).or_default() += 1,
            [from, "->", to, bytes, "bytes,", "twice"] => {
                *under_way.entry((from, to, bytes)).or_default() += 2;
            }
            [to, "<-", from, bytes, "bytes", _] => {
                let sent = under_way.get_mut(&(from, to, bytes)).filter(|sent| **sent > 0);
                *sent.unwrap_or_else(|| panic!("nobody sent this: {line}")) -= 1;
                arrived += 1;
            }
            _ => {}
        }
    }
    assert!(arrived > 1_000, "{arrived} packets arrived");
    let with = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert!(report.counts.answers > 0 && report.counts.ops > 0);
    assert_eq!(with(" was answered by "), report.counts.answers);
    assert_eq!(with(" calls "), report.counts.ops);
    assert!(with(" knows the view of ") > 0);
}

#[test]
fn of_a_trace_that_is_not_kept_the_last_lines_are() {
    let options = Options { safety: Duration::from_secs(1), keep: Keep::All, ..Options::new(12) };
    let (all, last) = (run(options).trace, run(Options { keep: Keep::Last, ..options }).trace);
    assert_eq!((all.hash, all.count), (last.hash, last.count));
    assert!(last.lines.len() < all.lines.len(), "{} lines were kept", last.lines.len());
    assert_eq!(last.lines.last().unwrap(), all.lines.last().unwrap());
    assert!(all.lines.ends_with(&last.lines));
}
