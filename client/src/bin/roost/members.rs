//! `roost cluster members`: who coordinates, and how that changes.
//!
//! Names are turned into node ids here, from what the leader answers: two members bear one name while a machine takes
//! another's place. What may be done is decided by the leader; a learner that lags is asked for again until it is ready.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::Subcommand;
use roost_protocol::messages::control::{MemberSummary, MembersSummary, Reconfigure, Reconfigured};
use roost_protocol::{NodeId, NodeName};
use serde::Serialize;

use crate::output::Report;
use crate::session::Session;
use crate::table::{Table, left, right};

/// How long a change is tried when `--timeout` does not say: a learner takes in a snapshot and some bundles meanwhile.
const WITHIN: Duration = Duration::from_secs(120);

/// What to do with the coordinators.
#[derive(Debug, Subcommand)]
pub enum MembersCommand {
    /// Lists the coordinators: who votes, who leads, who lags
    List,
    /// Takes a coordinator in that runs with an empty data folder; it learns and has no vote yet
    #[command(after_help = "Example:\n  roost cluster members add c4 --address 10.0.0.4:7300\n\n\
        Before that: a certificate for c4 (roost certs issue c4 --roles coordinator), c4 in its own config\n\
        beside the present coordinators, and roost-node --config cluster.toml --name c4 running there.")]
    Add {
        /// Its name, as in its certificate
        name: NodeName,
        /// Where it listens for coordinators
        #[arg(long, value_name = "HOST:PORT")]
        address: String,
    },
    /// Gives learners a vote once they hold every bundle; several in one step
    Promote {
        /// Their names or node ids
        #[arg(required = true, value_name = "MEMBER")]
        members: Vec<String>,
    },
    /// Ends the membership of coordinators; refused where a bundle would be held by less than a quorum
    Remove {
        /// Their names or node ids
        #[arg(required = true, value_name = "MEMBER")]
        members: Vec<String>,
    },
    /// Puts a machine with an empty data folder in the place of the member of the same name
    #[command(after_help = "Example:\n  roost cluster members replace c2\n\n\
        Start the new machine as c2 first. It is taken in, waited for until it holds every bundle, and gets\n\
        the vote in the same step in which the old c2 loses it.")]
    Replace {
        /// The name
        name: NodeName,
        /// Where the new machine listens for coordinators [default: the old one's address]
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
    },
    /// Hands leadership over
    TransferLeader {
        /// Who is to lead [default: who is best up to date]
        member: Option<String>,
    },
}

/// The coordinators, after what was done.
#[derive(Debug, Serialize)]
struct Members {
    /// What was done; none for a list.
    done: Option<String>,
    /// Whether one set of voters is being replaced by another.
    changing: bool,
    members: Vec<MemberLine>,
    /// What the leader's config says otherwise.
    config_differs: Vec<String>,
}

#[derive(Debug, Serialize)]
struct MemberLine {
    name: String,
    node: String,
    address: String,
    role: &'static str,
    behind_entries: Option<u64>,
    heard_ms: Option<u64>,
}

/// Carries the command out.
///
/// # Errors
/// When a member is unknown, or the leader does not do it in time.
pub async fn run(session: &Session, command: MembersCommand) -> anyhow::Result<()> {
    let control = session.client.control();
    let reconfigure = async |asked| {
        // A little less than what the command may take, so that the leader's reason is told.
        let within = session.left().map_or(WITHIN, |left| left.mul_f64(0.9));
        control.reconfigure(asked, within).await
    };
    let done = match command {
        MembersCommand::List => None,
        MembersCommand::Add { name, address } => {
            reconfigure(Reconfigure::Add { name: name.clone(), address }).await?;
            Some(format!("{name} is a member; if it is to vote: roost cluster members promote {name}"))
        }
        MembersCommand::Promote { members } => {
            let promote = find_all(&control.members().await?, &members)?;
            reconfigure(Reconfigure::Change { promote, remove: BTreeSet::new() }).await?;
            Some(format!("{} may vote; name every member in the config of each machine", members.join(", ")))
        }
        MembersCommand::Remove { members } => {
            let remove = find_all(&control.members().await?, &members)?;
            reconfigure(Reconfigure::Change { promote: BTreeSet::new(), remove }).await?;
            Some(format!("{} coordinates no longer; its process may be stopped", members.join(", ")))
        }
        MembersCommand::Replace { name, address } => {
            let before = control.members().await?;
            let address = address.map_or_else(|| address_of(&before, &name), Ok)?;
            let Reconfigured::Added(new) =
                reconfigure(Reconfigure::Add { name: name.clone(), address }).await?
            else {
                bail!("the leader answered something else than that {name} was taken in");
            };
            let change = replacement(&before, &name, new)?;
            reconfigure(change).await?;
            Some(format!("node {new} is {name} now"))
        }
        MembersCommand::TransferLeader { member } => {
            let to = match &member {
                Some(member) => Some(find(&control.members().await?, member)?),
                None => None,
            };
            reconfigure(Reconfigure::TransferLeader { to }).await?;
            Some("leadership was handed over".to_owned())
        }
    };
    Ok(session.output.print(&Members::of(control.members().await?, done))?)
}

/// The member that is called so, or has this id.
fn find(summary: &MembersSummary, called: &str) -> anyhow::Result<NodeId> {
    let called_so = |m: &&MemberSummary| m.name.as_str() == called || m.node.to_string() == called;
    let mut found = summary.members.iter().filter(called_so);
    match (found.next(), found.next()) {
        (Some(member), None) => Ok(member.node),
        (None, _) => {
            let names: BTreeSet<&str> = summary.members.iter().map(|member| member.name.as_str()).collect();
            let names: Vec<&str> = names.into_iter().collect();
            bail!("there is no member {called}; there are {}", names.join(", "))
        }
        (Some(one), Some(other)) => {
            bail!("two members are called {called}; say which by its node id, {} or {}", one.node, other.node)
        }
    }
}

fn find_all(summary: &MembersSummary, called: &[String]) -> anyhow::Result<BTreeSet<NodeId>> {
    called.iter().map(|called| find(summary, called)).collect()
}

fn address_of(summary: &MembersSummary, name: &NodeName) -> anyhow::Result<String> {
    let named = summary.members.iter().find(|member| member.name == *name && member.voter);
    let named = named.or_else(|| summary.members.iter().find(|member| member.name == *name));
    named.map(|member| member.address.clone()).ok_or_else(|| {
        anyhow::anyhow!(
            "there is no member {name} to replace; `roost cluster members add` takes in a new one"
        )
    })
}

/// The change that gives the node `new` the place of all others of its name.
fn replacement(before: &MembersSummary, name: &NodeName, new: NodeId) -> anyhow::Result<Reconfigure> {
    let others = before.members.iter().filter(|member| member.name == *name && member.node != new);
    let remove: BTreeSet<NodeId> = others.map(|member| member.node).collect();
    let votes = before.members.iter().any(|member| member.node == new && member.voter);
    ensure!(
        !votes || !remove.is_empty(),
        "{name} is still the same node, {new}: start its successor with an empty data folder"
    );
    Ok(Reconfigure::Change { promote: [new].into(), remove })
}

impl Members {
    fn of(summary: MembersSummary, done: Option<String>) -> Self {
        let mut members = summary.members;
        members.sort_by(|a, b| (&a.name, a.node).cmp(&(&b.name, b.node)));
        let line = |member: MemberSummary| MemberLine {
            name: member.name.to_string(),
            node: member.node.to_string(),
            address: member.address,
            role: match (member.leader, member.voter) {
                (true, _) => "leader",
                (false, true) => "voter",
                (false, false) => "learner",
            },
            behind_entries: member.behind,
            heard_ms: member.heard_ms,
        };
        let members = members.into_iter().map(line).collect();
        Self { done, changing: summary.changing, members, config_differs: summary.config_differs }
    }
}

impl Report for Members {
    fn text(&self) -> String {
        let mut table = Table::new([
            left("MEMBER"),
            left("NODE"),
            left("ADDRESS"),
            left("ROLE"),
            right("BEHIND"),
            right("HEARD"),
        ]);
        for line in &self.members {
            let number = |number: Option<u64>, unit: &str| {
                number.map_or_else(|| "-".to_owned(), |number| format!("{number}{unit}"))
            };
            table.row([
                line.name.clone(),
                line.node.clone(),
                line.address.clone(),
                line.role.to_owned(),
                number(line.behind_entries, ""),
                number(line.heard_ms, " ms"),
            ]);
        }
        let done = self.done.iter().map(|done| format!("{done}\n\n"));
        let changing = self.changing.then(|| "One set of voters is being replaced by another.\n".to_owned());
        let differs = self.config_differs.iter().map(|difference| {
            format!("The leader's config differs from the membership, which counts: {difference}.\n")
        });
        done.chain([table.to_string()]).chain(changing).chain(differs).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> NodeName {
        NodeName::new(name).unwrap()
    }

    /// a leads, b votes and is silent, another b learns.
    fn summary() -> MembersSummary {
        let member = |node: u64, called: &str, voter, behind, heard_ms| MemberSummary {
            node: NodeId(node),
            name: name(called),
            address: format!("10.0.0.{node}:7300"),
            voter,
            leader: node == 1,
            behind,
            heard_ms,
        };
        MembersSummary {
            members: vec![
                member(1, "a", true, Some(0), Some(0)),
                member(2, "b", true, Some(812), None),
                member(3, "b", false, Some(4), Some(80)),
            ],
            changing: false,
            config_differs: vec!["c stands in the config and is no member".to_owned()],
        }
    }

    #[test]
    fn members_are_found_by_name_or_id() {
        assert_eq!(find(&summary(), "a").unwrap(), NodeId(1));
        assert_eq!(find(&summary(), &NodeId(3).to_string()).unwrap(), NodeId(3));
        assert!(find(&summary(), "b").unwrap_err().to_string().contains("say which"));
        assert!(find(&summary(), "x").unwrap_err().to_string().contains("there are a, b"));
    }

    #[test]
    fn a_successor_takes_the_place_of_all_of_its_name() {
        let change = replacement(&summary(), &name("b"), NodeId(3)).unwrap();
        assert_eq!(change, Reconfigure::Change { promote: [NodeId(3)].into(), remove: [NodeId(2)].into() });
        assert_eq!(address_of(&summary(), &name("b")).unwrap(), "10.0.0.2:7300");
        replacement(&summary(), &name("a"), NodeId(1)).unwrap_err();
        address_of(&summary(), &name("x")).unwrap_err();
    }

    #[test]
    fn who_lags_is_seen() {
        let text = Members::of(summary(), Some("b is a learner".to_owned())).text();
        expect_test::expect![[r#"
            b is a learner

            MEMBER  NODE  ADDRESS        ROLE     BEHIND  HEARD
            a       1     10.0.0.1:7300  leader        0   0 ms
            b       2     10.0.0.2:7300  voter       812      -
            b       3     10.0.0.3:7300  learner       4  80 ms
            The leader's config differs from the membership, which counts: c stands in the config and is no member.
        "#]].assert_eq(&text);
    }
}
