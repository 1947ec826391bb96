//! A version is not dropped before others serve it: when a worker unloads one of its own will, another serves
//! it, unless one that served it was lost meanwhile, or nobody needs it any more. And none becomes stable
//! that nobody serves: when a promotion or an undo is applied, one serves where it leads to. A promotion is
//! excused by a loss of late, an undo by any: it counts on owners that are silent, since it is the way out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use roost_protocol::view::{NodeState, View};

use super::Invariant;
use crate::facts::Fact;

/// How old the news of another's readiness may be by which a worker lets go: a broken watch notices after its
/// idle timeout and dials anew, a leader's death takes an election and a settling.
const NEWS: Duration = Duration::from_secs(15);

/// A stable version always has a serving replica while one lives.
#[derive(Default)]
pub struct AlwaysServing {
    /// Who serves each version.
    serving: BTreeMap<String, BTreeSet<String>>,
    /// When a server of each was lost last, against its will.
    lost: BTreeMap<String, Duration>,
    /// When each host began to drain a version.
    draining: BTreeMap<(String, String), Duration>,
    /// The newest view that a client has seen.
    view: Option<std::sync::Arc<View>>,
    /// The newest revision of each model's traffic that a coordinator has applied.
    rerouted: BTreeMap<String, u64>,
    /// The versions that were served, or whose loss excuses, when a model's traffic was switched to a revision that
    /// no client has seen yet.
    switched: BTreeMap<(String, u64), BTreeSet<String>>,
}

impl AlwaysServing {
    fn lose(&mut self, host: &str, version: &str, at: Duration) {
        if self.serving.get_mut(version).is_some_and(|hosts| hosts.remove(host)) {
            self.lost.insert(version.to_owned(), at);
        }
    }

    /// Whether the newest view has the version as its model's stable one, and a node that may own it. While
    /// no client has seen where a model's traffic was switched to, workers may know more than the clients'
    /// views, and nothing is said.
    fn is_needed(&self, version: &str) -> bool {
        let Some(view) = &self.view else { return false };
        let owning = view.nodes.values().any(|node| node.state == NodeState::Active && node.hold.is_none());
        let stable = view.models.iter().any(|(name, model)| {
            let newest = self.rerouted.get(name.as_str()).copied().unwrap_or_default();
            model.traffic.revision.0 >= newest && format!("{name}@{}", model.traffic.stable) == version
        });
        owning && stable
    }
}

/// The model whose traffic a command switched, as the text of what was applied says, and the revision that it
/// led to.
fn rerouted(what: &str) -> Option<(&str, u64)> {
    let (command, revision) = what.rsplit_once(": Ok(Rerouted { revision: Revision(")?;
    let (_, model) = command.split_once("model: ")?;
    let (model, _) = model.split_once([',', ' '])?;
    Some((model, revision.split_once(')')?.0.parse().ok()?))
}

/// Since when a loss excuses that nobody serves what a command makes stable, as the text of what was applied
/// at `at` says.
fn excused_since(what: &str, at: Duration) -> Option<Duration> {
    if what.starts_with("Promote ") {
        Some(at.saturating_sub(NEWS))
    } else if what.starts_with("Undo ") {
        Some(Duration::ZERO)
    } else {
        None
    }
}

impl Invariant for AlwaysServing {
    fn name(&self) -> &'static str {
        "a stable version is always served"
    }

    fn watch(&mut self, at: Duration, host: &str, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Saw(published) => {
                let newer =
                    published.view.as_ref().map(|view| view.epoch) > self.view.as_ref().map(|v| v.epoch);
                if newer {
                    self.view = published.view.clone();
                    return self.check_switched();
                }
            }
            Fact::Applied { what, .. } => {
                if let Some((model, revision)) = rerouted(what) {
                    self.reroute(model, revision, excused_since(what, at));
                }
            }
            Fact::Died => {
                let versions: Vec<String> = self.serving.keys().cloned().collect();
                versions.iter().for_each(|version| self.lose(host, version, at));
                self.draining.retain(|(drains, _), _| drains != host);
            }
            Fact::ActorDied { version } => self.lose(host, version, at),
            Fact::Moved { version, to, live } => return self.moved(at, host, version, to, *live),
            _ => {}
        }
        Ok(())
    }
}

impl AlwaysServing {
    /// A coordinator applied what led a model's traffic to a revision; every one does, some of them again.
    /// What makes a version stable is excused by a loss since `excused`; none where it makes none so.
    fn reroute(&mut self, model: &str, revision: u64, excused: Option<Duration>) {
        let newest = self.rerouted.entry(model.to_owned()).or_default();
        if *newest >= revision {
            return;
        }
        *newest = revision;
        if let Some(since) = excused {
            let served =
                self.serving.iter().filter(|(_, hosts)| !hosts.is_empty()).map(|(version, _)| version);
            let lost = self.lost.iter().filter(|(_, lost)| **lost >= since).map(|(version, _)| version);
            let known = served.chain(lost).cloned().collect();
            self.switched.insert((model.to_owned(), revision), known);
        }
    }

    /// Which version a switch made stable is seen in a view of its revision, unless clients skip that.
    fn check_switched(&mut self) -> Result<(), String> {
        let models = self.view.iter().flat_map(|view| &view.models);
        for (name, traffic) in models.map(|(name, model)| (name, &model.traffic)) {
            let served = self.switched.remove(&(name.to_string(), traffic.revision.0));
            self.switched
                .retain(|(model, revision), _| model != name.as_str() || *revision > traffic.revision.0);
            let stable = format!("{name}@{}", traffic.stable);
            if served.is_some_and(|served| !served.contains(&stable)) {
                return Err(format!("{stable} became stable, which nobody served: {traffic:?}"));
            }
        }
        Ok(())
    }

    fn moved(&mut self, at: Duration, host: &str, version: &str, to: &str, live: u64) -> Result<(), String> {
        let drain = (host.to_owned(), version.to_owned());
        match to {
            "Ready" => {
                self.draining.remove(&drain);
                self.serving.entry(version.to_owned()).or_default().insert(host.to_owned());
            }
            "Draining" => {
                self.draining.entry(drain).or_insert(at);
            }
            "Unloaded" => {
                let since = self.draining.remove(&drain).unwrap_or(at);
                let others = self.serving.entry(version.to_owned()).or_default();
                if !others.remove(host) || !others.is_empty() || !self.is_needed(version) {
                    return Ok(());
                }
                let lost = self.lost.get(version).is_some_and(|lost| *lost + NEWS >= since);
                if !lost {
                    return Err(format!("{host} dropped {version}, which nobody else serves"));
                }
            }
            // With several executors it is served also while one of them is prepared anew.
            _ => {
                self.draining.remove(&drain);
                if live == 0 {
                    self.lose(host, version, at);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{at, published, traffic, view};
    use super::*;

    fn tell(serving: &mut AlwaysServing, seconds: u64, host: &str, to: &str) -> Result<(), String> {
        tell_live(serving, seconds, host, to, 1)
    }

    fn tell_live(
        serving: &mut AlwaysServing,
        seconds: u64,
        host: &str,
        to: &str,
        live: u64,
    ) -> Result<(), String> {
        let moved = Fact::Moved { version: "alpha@1".to_owned(), to: to.to_owned(), live };
        serving.watch(at(seconds), host, &moved)
    }

    /// Both workers serve version 1 of `alpha`, of which `stable` is the stable one.
    fn two_serve(stable: u32) -> AlwaysServing {
        let mut serving = AlwaysServing::default();
        let saw = Fact::Saw(published(view(1, traffic(1, stable), 2, 2)));
        serving.watch(at(1), "user1", &saw).unwrap();
        tell(&mut serving, 1, "w1", "Ready").unwrap();
        tell(&mut serving, 1, "w2", "Ready").unwrap();
        serving
    }

    #[test]
    fn the_last_that_serves_does_not_let_go_of_its_own_will() {
        for (stable, holds) in [(1, false), (2, true)] {
            let mut serving = two_serve(stable);
            tell(&mut serving, 50, "w1", "Draining").unwrap();
            tell(&mut serving, 51, "w1", "Unloaded").unwrap();
            tell(&mut serving, 52, "w2", "Draining").unwrap();
            assert_eq!(tell(&mut serving, 53, "w2", "Unloaded").is_ok(), holds);
        }
    }

    #[test]
    fn a_loss_that_the_last_could_not_know_of_excuses_it() {
        for (lost, holds) in [(20, false), (45, true)] {
            let mut serving = two_serve(1);
            serving.watch(at(lost), "w1", &Fact::Died).unwrap();
            tell(&mut serving, 50, "w2", "Draining").unwrap();
            assert_eq!(tell(&mut serving, 51, "w2", "Unloaded").is_ok(), holds);
        }
    }

    #[test]
    fn a_version_is_lost_with_its_last_executor() {
        for (live, holds) in [(1, false), (0, true)] {
            let mut serving = two_serve(1);
            tell_live(&mut serving, 48, "w1", "Restarting", live).unwrap();
            tell(&mut serving, 49, "w1", "Draining").unwrap();
            tell_live(&mut serving, 50, "w1", "Unloaded", 0).unwrap();
            tell(&mut serving, 50, "w2", "Draining").unwrap();
            assert_eq!(tell_live(&mut serving, 52, "w2", "Unloaded", 0).is_ok(), holds);
        }
    }

    #[test]
    fn what_becomes_stable_is_served_or_was_lost_lately() {
        let switch = |command: &str, stable, lost: Option<u64>| {
            let mut serving = two_serve(2);
            if let Some(lost) = lost {
                serving.watch(at(lost), "w1", &Fact::Died).unwrap();
                serving.watch(at(lost), "w2", &Fact::Died).unwrap();
            }
            let what =
                format!("{command} {{ model: alpha }} by op1: Ok(Rerouted {{ revision: Revision(2) }})");
            serving.watch(at(50), "c1", &Fact::Applied { index: 9, what: what.clone() }).unwrap();
            // Another comes to it later.
            serving.watch(at(90), "c2", &Fact::Applied { index: 9, what }).unwrap();
            serving.watch(at(91), "user1", &Fact::Saw(published(view(9, traffic(2, stable), 2, 2))))
        };
        switch("Promote", 1, None).unwrap();
        switch("Promote", 1, Some(40)).unwrap();
        switch("Promote", 1, Some(30)).unwrap_err();
        switch("Undo", 1, Some(30)).unwrap();
        switch("Undo", 2, None).unwrap_err();
        // Makes nothing stable that was not.
        switch("Abort", 1, Some(30)).unwrap();
    }

    #[test]
    fn a_switch_is_read_from_what_was_applied() {
        let undo =
            "Undo { model: beta, revision: Revision(4) } by op1: Ok(Rerouted { revision: Revision(5) })";
        assert_eq!(rerouted(undo), Some(("beta", 5)));
        let refused = "Promote { model: beta, revision: Revision(4) } by op1: Err(NoRollout { model: beta })";
        assert_eq!(rerouted(refused), None);
    }
}
