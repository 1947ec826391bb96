//! The command line as a whole. What belongs to one command is beside it, in its own file.

use clap::{Parser, Subcommand};

use crate::certs::CertsCommand;
use crate::cluster::ClusterCommand;
use crate::infer::InferArguments;
use crate::models::{LabelCommand, VersionsArguments};
use crate::node::NodeCommand;
use crate::push::PushArguments;
use crate::rollout::RolloutCommand;
use crate::session::Global;

/// Pushes model versions to a Roost cluster, rolls them out, and asks them
#[derive(Debug, Parser)]
#[command(
    name = "roost",
    version,
    arg_required_else_help = true,
    after_help = "\
A profile says which cluster and as whom. It is TOML; paths are relative to its folder:
  nodes = [\"10.0.0.1:7400\", \"10.0.0.2:7400\"]    some nodes of the cluster; one that lives is enough
  ca = \"certs/ca.pem\"
  certificate = \"certs/anna.pem\"                  from `roost certs issue anna --roles operator,client`
  key = \"certs/anna.key\"

A first rollout:
  roost push digits models/digits/v1                the first version takes all traffic
  roost push digits models/digits/v2                the second none yet
  roost rollout start digits@2 --steps 20%
  roost rollout status digits
  roost infer digits --key user-42 --input image=images.npy --rows 0..4
  roost rollout promote digits

The exit code is 0 when it was done, 1 when it failed, 2 when the command line or the profile is wrong.
ROOST_LOG (debug, roost_client=trace, ...) says more on standard error."
)]
pub struct Arguments {
    /// What all commands understand.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Something that needs a cluster.
    #[command(flatten)]
    OnCluster(OnCluster),
    /// Makes a cluster's own CA, and certificates from it
    #[command(subcommand)]
    Certs(CertsCommand),
}

/// What to do with a cluster.
#[derive(Debug, Subcommand)]
pub enum OnCluster {
    /// Makes a folder with model.onnx a model's next version
    Push(PushArguments),
    /// Lists the models, and where their traffic goes
    Models,
    /// Lists a model's versions, or forgets old ones
    Versions(VersionsArguments),
    /// Leads a model's traffic from one version to another
    #[command(subcommand)]
    Rollout(RolloutCommand),
    /// Names versions: digits:prod is whatever version bears the label prod
    #[command(subcommand)]
    Label(LabelCommand),
    /// Asks a model, with inputs from files
    Infer(InferArguments),
    /// Takes workers out of service and back
    #[command(subcommand)]
    Node(NodeCommand),
    /// Shows the cluster, and changes who coordinates
    #[command(subcommand)]
    Cluster(ClusterCommand),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_grammar_holds_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn good_lines_parse() {
        for line in [
            "models",
            "models --output json --timeout 2.5",
            "--profile a.toml versions digits",
            "versions retain digits --keep 3",
            "push digits folder --note text --new-version",
            "rollout start digits@2 --steps 20%",
            "rollout status digits",
            "rollout promote digits",
            "rollout abort digits --reason worse",
            "rollout undo digits",
            "rollout history digits",
            "label set digits@2 prod",
            "label remove digits prod",
            "infer digits --input image=a.npy --rows 0..4 --key u --deadline-ms 50 --repeat 3",
            "infer digits@2 --image a.png b.png",
            "infer encoder:prod --input a:i64=a.json --input b=b.npy",
            "cluster status",
            "node cordon w1",
            "node uncordon w1",
            "node drain w1 --timeout 60",
            "cluster members list",
            "cluster members add c4 --address 10.0.0.4:7300",
            "cluster members promote c4 c5",
            "cluster members remove c4",
            "cluster members replace c2 --address 10.0.0.9:7300",
            "cluster members transfer-leader",
            "cluster members transfer-leader c2",
            "certs init --cluster demo --into certs",
            "certs issue anna --roles operator,client --ca certs --days 30",
        ] {
            let parsed = Arguments::try_parse_from(std::iter::once("roost").chain(line.split(' ')));
            parsed.map(|_| ()).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn bad_lines_are_refused() {
        for line in [
            "model",
            "versions",
            "versions retain digits",
            "versions retain digits --keep 0",
            "push digits",
            "push Digits folder",
            "rollout start digits --steps 20%",
            "rollout start digits@0 --steps 20%",
            "rollout start digits@2",
            "rollout start digits@2 --steps 5%,100%",
            "rollout start digits@2 --weight 20%",
            "infer digits",
            "infer digits --input image",
            "infer digits --input image=a.npy --image b.png",
            "infer digits --image b.png --rows 0..2",
            "infer digits --input image=a.npy --repeat 0",
            "infer digits --input image=a.npy --deadline-ms 0",
            "certs issue anna",
            "certs issue anna --roles king",
            "certs issue anna --roles client --days 0",
            "node drain",
            "cluster members add c4",
            "cluster members promote",
            "models --timeout 0",
            "models --output xml",
        ] {
            let parsed = Arguments::try_parse_from(std::iter::once("roost").chain(line.split(' ')));
            assert!(parsed.is_err(), "{line}");
        }
    }
}
