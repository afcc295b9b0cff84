//! Commands through a server that has no room for all of their requests at once.

use super::command_line::{directly, through};
use super::server::Server;
use crate::support::program::answer;

#[tokio::test(flavor = "multi_thread")]
async fn find_waits_for_a_server_that_is_busy() {
    // Twelve requests at once, and three a second: fewer than the states that are searched.
    let server = Server::start_with("  requestsPerSecond: 3\n");
    server.fill().await;
    for n in 0..15 {
        let name = format!("more-{n:02}");
        let made =
            answer(&mut directly(&server, &["dataset", "snapshot", "web", &name, "--readonly"]));
        assert_eq!(made.code, 0, "{made:?}");
    }
    let find = ["dataset", "find", "a.txt", "web"];
    let found = answer(&mut through(&server, &find));
    assert_eq!(found, answer(&mut directly(&server, &find)));
    assert!(found.code == 0 && found.out.contains("docs/a.txt"), "{found:?}");
}
