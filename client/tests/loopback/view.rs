//! Following the view.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use roost_client::{Client, ConnectError, Follower, Sources, Tensor};
use roost_protocol::Epoch;
use roost_protocol::messages::control::Watched;
use tokio::net::UdpSocket;

use crate::peer::{Cluster, Does};

fn input() -> Tensor {
    Tensor::from_elements(&[1], vec![1f32]).unwrap()
}

async fn epoch_reaches(client: &Client, index: u64) {
    let at = Epoch { generation: 1, index };
    let mut published = client.published();
    published
        .wait_for(|published| published.view.as_ref().is_some_and(|view| view.epoch >= at))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_view_that_changes_is_followed_from_node_to_node() {
    let cluster = Cluster::start(3, 0).await;
    let client = Client::connect(cluster.config(&[&cluster.peers[0]])).await.unwrap();
    let version = async || client.infer("digits").input("x", input()).send().await.unwrap().version.0;
    assert_eq!(version().await, 1);
    cluster.publish_everywhere(2, 100);
    epoch_reaches(&client, 2).await;
    assert_eq!(version().await, 2);
    // The seed goes; the others are known from the view. One of them is behind, which changes nothing.
    cluster.peers[1].publish(cluster.state(1, 0));
    cluster.peers[0].close().await;
    cluster.peers[2].publish(cluster.state(3, 0));
    let known = client.published().borrow().view.as_ref().map(|view| view.epoch);
    assert!(known >= Some(Epoch { generation: 1, index: 2 }));
    cluster.peers[1].publish(cluster.state(3, 0));
    epoch_reaches(&client, 3).await;
    assert_eq!(version().await, 1);
}

#[tokio::test]
async fn a_source_that_lags_is_left_for_the_one_that_is_ahead() {
    let cluster = Cluster::start(2, 0).await;
    let (lags, leads) = (&cluster.peers[0], &cluster.peers[1]);
    let client = Client::connect(cluster.config(&[lags])).await.unwrap();
    cluster.peers.iter().for_each(|peer| peer.does(Does::Checks));
    leads.publish(cluster.state(2, 100));
    // The lagging peer would still answer by the old revision: only whoever was not told yet may be sent
    // there.
    for i in 0..200 {
        let response =
            client.infer("digits").key(format!("user-{i}")).input("x", input()).send().await.unwrap();
        if response.epoch.index == 2 {
            assert_eq!((response.version.0, response.revision.0), (2, 2));
            break;
        }
        assert!(i < 199, "the peer that leads was never asked");
    }
    for i in 0..20 {
        let response =
            client.infer("digits").key(format!("user-{i}")).input("x", input()).send().await.unwrap();
        assert_eq!((response.version.0, response.revision.0), (2, 2), "an older revision than was seen");
    }
}

/// Each node is a quarter of a second away, and nobody waits that long for a node that lags.
#[tokio::test]
async fn nodes_that_are_far_away_are_followed() {
    let mut cluster = Cluster::start(2, 0).await;
    for peer in &mut cluster.peers {
        peer.address = far_away(&peer.address, Duration::from_millis(125)).await;
    }
    cluster.publish_everywhere(1, 0);
    let (lags, leads) = (&cluster.peers[0], &cluster.peers[1]);
    let client = Client::connect(cluster.config(&[lags])).await.unwrap();
    cluster.peers.iter().for_each(|peer| peer.does(Does::Checks));
    leads.publish(cluster.state(2, 100));
    // Whoever leads answers none by the old revision: it is asked again once its view has come.
    for i in 0..200 {
        let response =
            client.infer("digits").key(format!("user-{i}")).input("x", input()).send().await.unwrap();
        if response.epoch.index == 2 {
            assert_eq!((response.version.0, response.revision.0), (2, 2));
            return;
        }
    }
    panic!("the peer that leads was never asked");
}

/// The address of a way to `address` on which each packet takes so long, for one client.
async fn far_away(address: &str, takes: Duration) -> String {
    let bind = async || Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let (near, far) = (bind().await, bind().await);
    far.connect(address).await.unwrap();
    let way = near.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let mut client = None;
        loop {
            let (packet, to, on) = tokio::select! {
                came = near.recv_from(&mut asked) => {
                    let (bytes, from) = came.unwrap();
                    client = Some(from);
                    (asked[..bytes].to_vec(), None, far.clone())
                }
                came = far.recv(&mut answered) => (answered[..came.unwrap()].to_vec(), client, near.clone()),
            };
            tokio::spawn(async move {
                tokio::time::sleep(takes).await;
                // Either end may be gone by then, as in any network.
                let _ = match to {
                    Some(client) => on.send_to(&packet, client).await,
                    None => on.send(&packet).await,
                };
            });
        }
    });
    way
}

#[tokio::test]
async fn a_follower_for_nodes_keeps_to_coordinators_and_stops_when_dropped() {
    let cluster = Cluster::start(1, 0).await;
    let dialler = cluster.dialler().await;
    let seeds = vec![cluster.peers[0].address.clone()];
    let follower = Follower::start(dialler, seeds, Watched::All, Sources::Coordinators, [1; 32]);
    let mut published = follower.published();
    published.wait_for(|published| published.view.is_some()).await.unwrap();
    assert_eq!(cluster.peers[0].watchers(), 1);
    drop(follower);
    while cluster.peers[0].watchers() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Machines that are gone say nothing, and each would be waited for in vain for two seconds.
#[tokio::test]
async fn silent_nodes_do_not_keep_anybody_from_a_live_one() {
    const SILENT: usize = 6;
    const FOLLOWERS: u8 = 8;
    /// Half of what those take who wait for half of the silent ones first, one after the other.
    const WITHIN: Duration = Duration::from_secs(4);
    let cluster = Cluster::start(1, 0).await;
    let silent: Vec<_> =
        join_all((0..SILENT).map(|_| async { UdpSocket::bind("127.0.0.1:0").await.unwrap() })).await;
    let silent_at = silent.iter().map(|socket| socket.local_addr().unwrap().to_string());
    let seeds: Vec<String> = silent_at.chain([cluster.peers[0].address.clone()]).collect();
    let dialler = cluster.dialler().await;
    // Each tries them in an order of its own; that the live one is early for all has odds of one in a thousand.
    let follow = |seed| {
        let (dialler, seeds) = (dialler.clone(), seeds.clone());
        async move {
            let follower = Follower::start(dialler, seeds, Watched::All, Sources::AllNodes, [seed; 32]);
            follower.published().wait_for(|published| published.view.is_some()).await.unwrap();
        }
    };
    let all = tokio::time::timeout(WITHIN, join_all((0..FOLLOWERS).map(follow))).await;
    assert!(all.is_ok(), "somebody waits for those who are silent");
}

#[tokio::test]
async fn a_client_that_finds_nobody_says_what_each_did() {
    let cluster = Cluster::start(2, 0).await;
    cluster.peers[1].close().await;
    let mut config = cluster.config(&[&cluster.peers[1]]);
    config.connect = Duration::from_millis(2_500);
    let ConnectError::NoView { troubles, .. } = Client::connect(config.clone()).await.unwrap_err() else {
        panic!("it connected");
    };
    assert_eq!(troubles[0].0, cluster.peers[1].address);
    config.seeds.clear();
    assert!(matches!(Client::connect(config.clone()).await, Err(ConnectError::NoSeeds)));
    config.seeds = vec!["127.0.0.1:1".to_owned()];
    config.credentials = roost_client::CredentialsSource::Files {
        ca: "no/ca.pem".into(),
        certificate: "no/a.pem".into(),
        key: "no/a.key".into(),
    };
    let error = Client::connect(config).await.unwrap_err();
    assert!(error.to_string().starts_with("cannot read no/ca.pem: "), "{error}");
}
