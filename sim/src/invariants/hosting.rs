//! Workers host what the view says, as their own lifecycles tell, not as was reported of them: an answer
//! comes from a node that serves the version, and at the end every owner serves and nobody else hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use roost_protocol::placement::owners;
use roost_protocol::view::View;
use roost_protocol::{ModelName, Version};

use super::{End, Invariant};
use crate::facts::Fact;
use crate::history::Answer;

/// Workers host what the view says.
#[derive(Default)]
pub struct Hosting {
    /// The stage of each version that the last process of each host has.
    stages: BTreeMap<String, BTreeMap<String, String>>,
    /// The versions that each host has been ready for and has not let go of.
    serving: BTreeSet<(String, String)>,
    /// When a host last let go of a version that it served.
    ended: BTreeMap<(String, String), Duration>,
    /// The names of the nodes, by their ids as answers give them.
    names: BTreeMap<String, String>,
}

impl Hosting {
    fn moved(&mut self, at: Duration, host: &str, version: &str, to: &str) {
        let stages = self.stages.entry(host.to_owned()).or_default();
        match to {
            // Gone, with its actor.
            "Unloaded" => stages.remove(version),
            _ => stages.insert(version.to_owned(), to.to_owned()),
        };
        match to {
            "Ready" => {
                self.serving.insert((host.to_owned(), version.to_owned()));
            }
            "Unloaded" | "Failed" => self.end(at, host, version),
            // With several executors a version serves also while one of them is prepared anew.
            _ => {}
        }
    }

    fn end(&mut self, at: Duration, host: &str, version: &str) {
        let served = (host.to_owned(), version.to_owned());
        if self.serving.remove(&served) {
            self.ended.insert(served, at);
        }
    }

    fn check(&self, answer: &Answer) -> Result<(), String> {
        // A node may answer by a view that no client has seen yet.
        let Some(host) = self.names.get(&answer.node) else { return Ok(()) };
        let served = (host.clone(), version_name(answer.target.model(), answer.version));
        let until = self.ended.get(&served);
        if self.serving.contains(&served) || until.is_some_and(|until| *until >= answer.invoked) {
            return Ok(());
        }
        Err(format!("{host} answered {answer:?}, and served {} until {until:?}", served.1))
    }
}

impl Invariant for Hosting {
    fn name(&self) -> &'static str {
        "workers host what the view says"
    }

    fn watch(&mut self, at: Duration, host: &str, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Saw(published) => {
                let nodes = published.view.iter().flat_map(|view| &view.nodes);
                self.names.extend(nodes.map(|(id, node)| (id.to_string(), node.name.to_string())));
            }
            Fact::Moved { version, to, live: _ } => self.moved(at, host, version, to),
            Fact::ActorDied { version } => {
                self.end(at, host, version);
                self.stages.entry(host.to_owned()).or_default().remove(version);
            }
            Fact::Died => {
                let served = self.serving.iter().filter(|(served, _)| served == host);
                let versions: Vec<String> = served.map(|(_, version)| version.clone()).collect();
                versions.iter().for_each(|version| self.end(at, host, version));
            }
            // Only now is what the last process hosted no more: at the end of a run all are killed ahead of
            // the judgement.
            Fact::Started => {
                self.stages.remove(host);
            }
            Fact::Answered(answer) => return self.check(answer),
            _ => {}
        }
        Ok(())
    }

    fn judge(&mut self, end: &End) -> Result<(), String> {
        let Some(view) = &end.last.view else { return Err("the auditor has no view".to_owned()) };
        let asked = wanted(view);
        // What has changed since everything had converged is still under way.
        let newest = end.views.values().next_back().map_or_else(BTreeMap::new, |view| wanted(view));
        for (node, versions) in &asked {
            let still = newest.get(node).cloned().unwrap_or_default();
            for version in versions.intersection(&still) {
                let stage = self.stages.get(node).and_then(|stages| stages.get(version));
                if stage.is_none_or(|stage| stage != "Ready") {
                    return Err(format!("{node} owns {version} at epoch {}; it is {stage:?}", view.epoch));
                }
            }
        }
        for (node, stages) in &self.stages {
            let owned = |version: &String| {
                [&asked, &newest].iter().any(|w| w.get(node).is_some_and(|owned| owned.contains(version)))
            };
            if let Some((version, stage)) = stages.iter().find(|(version, _)| !owned(version)) {
                return Err(format!(
                    "{node} has {version}, {stage}, which it does not own at {}",
                    view.epoch
                ));
            }
        }
        Ok(())
    }
}

/// What each node owns in a view, by the nodes' names.
fn wanted(view: &View) -> BTreeMap<String, BTreeSet<String>> {
    let (ring, mut wanted) = (view.ring(), BTreeMap::<String, BTreeSet<String>>::new());
    for (name, model) in &view.models {
        for version in model.versions.keys() {
            for node in owners(view, &ring, name, *version).iter().filter_map(|id| view.nodes.get(id)) {
                wanted.entry(node.name.to_string()).or_default().insert(version_name(name, *version));
            }
        }
    }
    wanted
}

fn version_name(model: &ModelName, version: Version) -> String {
    format!("{model}@{version}")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::fixtures::{answer, at, end, published, traffic, view};
    use super::*;

    fn moved(hosting: &mut Hosting, seconds: u64, host: &str, version: &str, to: &str) {
        let moved = Fact::Moved { version: version.to_owned(), to: to.to_owned(), live: 1 };
        hosting.watch(at(seconds), host, &moved).unwrap();
    }

    fn judge(hosting: &mut Hosting, versions: u32, nodes: u64) -> Result<(), String> {
        let view = view(9, traffic(1, 1), versions, nodes);
        let views = [(view.epoch, Arc::new(view.clone()))].into();
        hosting.judge(&End { views, last: published(view), ..end() })
    }

    #[test]
    fn owners_serve_and_others_host_nothing_at_the_end() {
        let mut hosting = Hosting::default();
        moved(&mut hosting, 1, "w1", "alpha@1", "Ready");
        judge(&mut hosting, 1, 1).unwrap();
        judge(&mut hosting, 1, 2).unwrap_err();
        moved(&mut hosting, 2, "w2", "alpha@1", "Warming");
        judge(&mut hosting, 1, 2).unwrap_err();
        moved(&mut hosting, 2, "w2", "alpha@1", "Ready");
        judge(&mut hosting, 1, 2).unwrap();
        moved(&mut hosting, 3, "w2", "alpha@2", "Draining");
        judge(&mut hosting, 1, 2).unwrap_err();
        moved(&mut hosting, 3, "w2", "alpha@2", "Unloaded");
        judge(&mut hosting, 1, 2).unwrap();
        // As all die at the end; one that starts has nothing.
        hosting.watch(at(4), "w2", &Fact::Died).unwrap();
        judge(&mut hosting, 1, 2).unwrap();
        hosting.watch(at(5), "w2", &Fact::Started).unwrap();
        judge(&mut hosting, 1, 2).unwrap_err();
        hosting.judge(&end()).unwrap_err();
    }

    #[test]
    fn an_answer_comes_from_who_serves_the_version() {
        let mut hosting = Hosting::default();
        let saw = Fact::Saw(published(view(1, traffic(1, 1), 1, 1)));
        hosting.watch(at(1), "user1", &saw).unwrap();
        let answered = Fact::Answered(Arc::new(answer()));
        moved(&mut hosting, 8, "w1", "alpha@1", "Warming");
        hosting.watch(at(11), "user1", &answered).unwrap_err();
        moved(&mut hosting, 9, "w1", "alpha@1", "Ready");
        hosting.watch(at(11), "user1", &answered).unwrap();
        // It was asked at 10.
        moved(&mut hosting, 10, "w1", "alpha@1", "Unloaded");
        hosting.watch(at(11), "user1", &answered).unwrap();
        moved(&mut hosting, 10, "w1", "alpha@1", "Ready");
        let later = Fact::Answered(Arc::new(Answer { invoked: at(13), returned: at(14), ..answer() }));
        hosting.watch(at(12), "w1", &Fact::Died).unwrap();
        hosting.watch(at(14), "user1", &later).unwrap_err();
    }
}
