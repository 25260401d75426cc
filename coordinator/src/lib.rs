//! The control plane's process: drives `control` over a store, serves it by gRPC, and shows it over HTTP.
//!
//! `control` decides, `store` keeps, `proto` speaks; here they are put together. The driver is the one
//! owner of the machine: calls and streams reach it through one bounded queue.

mod ask;
mod clock;
mod counted;
mod draw;
mod driver;
mod links;
mod logs;
mod meters;
mod service;
pub mod store;
mod sweep;
mod unsaid;
mod web;

use anyhow::Context;
use counted::Counted;
use driver::{Driver, Role};
use elastic_proto::{Access, Credentials};
use meters::Meters;
use service::Service;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use store::Store;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use web::{Board, Diary, Web};

/// How this coordinator shall be.
#[derive(Clone)]
pub struct Config {
    /// Where other machines reach it ("host:port" or a URL): what a standby tells its callers.
    pub advertise: String,
    /// The folder of run directories, as the nodes see it.
    pub runs: PathBuf,
    /// What callers must show.
    pub access: Access,
    /// What this coordinator shows to agents when it reads their logs.
    pub credentials: Credentials,
    pub control: elastic_control::Config,
}

/// Where this coordinator is reached.
pub struct Listeners {
    pub grpc: TcpListener,
    /// For the page, its JSON and metrics. None: nothing is shown.
    pub http: Option<TcpListener>,
}

impl From<TcpListener> for Listeners {
    fn from(grpc: TcpListener) -> Listeners {
        Listeners { grpc, http: None }
    }
}

/// Campaigns, leads when elected, and answers calls, until `shutdown`; then resigns.
///
/// Dropping the future is like kill -9: nothing is said or written after.
pub fn serve(
    listeners: impl Into<Listeners>,
    store: Arc<dyn Store>,
    config: Config,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Waits<anyhow::Result<()>> {
    // Boxed, so that it is compiled here, and not again in each program that has a coordinator.
    Box::pin(serve_until(listeners.into(), store, config, Box::pin(shutdown)))
}

type Waits<T> = Pin<Box<dyn Future<Output = T> + Send>>;

async fn serve_until(
    Listeners { grpc, http }: Listeners,
    store: Arc<dyn Store>,
    config: Config,
    shutdown: Waits<()>,
) -> anyhow::Result<()> {
    let bound = grpc.local_addr().context("listener's address")?;
    config.access.check(bound)?;
    let (asks, inbox) = mpsc::channel(ASKS_MAX);
    let (role, seen) = watch::channel(Role::Standby { leader: None });
    let (stop, stopped) = watch::channel(false);
    let service = Arc::new(Service::new(asks, seen, store.clone(), &config, stopped.clone()));
    let (meters, diary) = (Arc::<Meters>::default(), Arc::<Diary>::default());
    let driver = Driver {
        store,
        config: config.clone(),
        inbox,
        role,
        stopped: stopped.clone(),
        meters: meters.clone(),
        diary: diary.clone(),
    };
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    if let Some(http) = http {
        let board = Arc::new(Board::new(service.clone(), diary));
        let routes = Web { service: service.clone(), board: board.clone(), meters: meters.clone() }.routes();
        let (access, stopped) = (config.access.clone(), stopped.clone());
        tasks.spawn(async move {
            tokio::select! {
                served = elastic_web::serve(http, routes, &access, until(stopped)) => Ok(served?),
                never = board.run() => match never {},
            }
        });
    }
    let service = Arc::new(Counted { service, meters });
    tasks.spawn(async move {
        driver.run().await;
        Ok(())
    });
    tasks.spawn(async move {
        Ok(elastic_proto::server::serve_coordinator(grpc, service, &config.access, until(stopped)).await?)
    });
    let early = tokio::select! {
        () = shutdown => None,
        ended = tasks.join_next() => ended,
    };
    stop.send_replace(true);
    if let Some(ended) = early {
        ended.context("a part of the coordinator broke")??;
    }
    // The driver resigns first, so that a standby need not wait for a lease; streams that hang on are cut.
    let rest = async {
        while let Some(ended) = tasks.join_next().await {
            ended.context("a part of the coordinator broke")??;
        }
        Ok(())
    };
    tokio::time::timeout(STOP_TIME, rest).await.unwrap_or(Ok(()))
}

/// Returns when the switch is set, or its owner is gone.
pub(crate) async fn until(mut switch: watch::Receiver<bool>) {
    let _ = switch.wait_for(|on| *on).await;
}

/// Calls and reports that wait for the driver; more wait in their connections.
const ASKS_MAX: usize = 1024;
const STOP_TIME: Duration = Duration::from_secs(3);
