//! One rank of a job, as a process: boot, join, restore, train, drain.
//!
//! [`main`] is the hidden `elastic worker`; [`main_with`] is the same for models of one's own. What a rank
//! does and when is decided by `elastic-member`; this crate is the shell around it:
//!
//! | part | is |
//! |---|---|
//! | [`env`], [`device`], [`boot`] | what the agent said; what to compute on; data, network, newest checkpoint |
//! | [`agent_link`], [`status`] | status up, orders down |
//! | [`member_loop`] | the one task that owns the member |
//! | [`trainer`], [`pool`], [`job`], [`state`] | the training thread, its helpers, the arithmetic, what it makes |
//! | [`planned`], [`memory`], [`profile`] | what a worker will hold, and where the time of a step goes: without a cluster |
//! | [`not_finite`] | a step whose gradient is not finite: what is told of it |
//! | [`ahead`], [`inputs`] | batches, made ahead of their steps beside it |
//! | [`sums`] | owned chunks, added up beside it |
//! | [`publisher`], [`contents`], [`rows`], [`tensorboard`], [`run_dir`] | checkpoints, the event log and its curves, written beside it |
//! | [`about`], [`aside`] | what a run's directory says of the run; how its files are replaced |
//! | [`command`] | instead of all that: the processes of a job that runs a command |
//! | [`fault`], [`fail`], [`stderr`] | why it ends too soon, by itself or for a test; who is told |

mod about;
mod agent_link;
mod ahead;
mod aside;
mod boot;
pub mod bucket;
mod command;
mod contents;
pub mod device;
mod env;
mod fail;
mod fault;
mod inputs;
mod job;
mod member_loop;
pub mod memory;
mod not_finite;
pub mod planned;
mod pool;
pub mod profile;
mod publisher;
mod rows;
mod run_dir;
mod state;
mod status;
mod stderr;
mod sums;
mod tensorboard;
mod trainer;
#[cfg(test)]
mod world;

use agent_link::AgentLink;
use anyhow::Context;
use boot::{Booted, Order};
use elastic_collectives::{LinkConfig, Links, TlsConfig, Transport};
use elastic_member::{Config, Event, Leaving};
use elastic_spec::batch::DataShape;
use elastic_spec::facts::{Metrics, Published};
use elastic_spec::limits::{BEAT_MS, LOG_BYTES_MAX, LOG_ROUNDS_MAX};
use elastic_spec::view::exit;
use elastic_tensor::Network;
use env::Env;
use fault::{Alarm, Fault};
use member_loop::{Inputs, MemberLoop, Outputs};
use pool::{Pool, Shared};
use publisher::{Failing, Place, Publisher};
use status::Speaker;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use sums::Sums;
use tensorboard::Board;
use tokio::sync::{mpsc, oneshot};
use trainer::{Task, Trainer};

/// Makes the network of a model of one's own: what the data offers, the samples of one shard, and
/// `model.params` as the job file has them.
pub type Build = dyn Fn(&DataShape, usize, &serde_json::Value) -> Result<Box<dyn Network>, String> + Send + Sync;
type Builder = Option<Arc<Build>>;

/// Runs one worker of a job whose model is one of `elastic-models`.
pub fn main() -> ExitCode {
    run(None)
}

/// Runs one worker of a job with `model.kind = "own"`, whose `program` is the one that calls this.
pub fn main_with(
    build: impl Fn(&DataShape, usize, &serde_json::Value) -> Result<Box<dyn Network>, String> + Send + Sync + 'static,
) -> ExitCode {
    run(Some(Arc::new(build)))
}

fn run(build: Builder) -> ExitCode {
    // Before any other thread is there: all of them compute, or add up, in this mode.
    elastic_tensor::float_mode::Ieee::stay();
    let _ = tracing_subscriber::fmt().with_writer(|| stderr::Stderr).with_ansi(false).with_target(false).try_init();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("the system gives an event queue");
    let code = match prepare(&runtime) {
        Ok((env, agent)) => match command::order(&env) {
            Some((order, command)) => keep(&runtime, env, agent, &order, &command),
            None => live(&runtime, env, agent, build),
        },
        Err(fault) => {
            stderr::say(format_args!("worker: {fault}"));
            fault.exit_code()
        }
    };
    // Other threads may still compute, or spin: they end with the process.
    std::process::exit(code)
}

/// Before this, nobody hears what is wrong but stderr.
fn prepare(runtime: &tokio::runtime::Runtime) -> Result<(Env, AgentLink), Fault> {
    let env = Env::read().map_err(Fault::User)?;
    if let Some(points) = &env.fail {
        fail::arm(points, env.fail_once.clone(), env.slot).map_err(Fault::User)?;
    }
    let agent = runtime.block_on(AgentLink::open(&env)).map_err(Fault::Orphaned)?;
    Ok((env, agent))
}

fn live(runtime: &tokio::runtime::Runtime, env: Env, mut agent: AgentLink, build: Builder) -> i32 {
    let life = catch_unwind(AssertUnwindSafe(|| runtime.block_on(life(&env, &mut agent, build))));
    let fault = match life.unwrap_or_else(|panic| Err(Fault::of_panic(&*panic))) {
        Ok(Leaving::Finished) => return exit::DONE,
        Ok(Leaving::Drained) => return exit::DRAINED,
        Err(fault) => fault,
    };
    stderr::say(format_args!("worker: {fault}"));
    runtime.block_on(agent.tell_last(|status| status.error = Some(fault.to_string())));
    fault.exit_code()
}

/// As `live`, of a job that runs a command.
fn keep(
    runtime: &tokio::runtime::Runtime,
    env: Env,
    mut agent: AgentLink,
    order: &Order,
    command: &elastic_spec::job::CommandSpec,
) -> i32 {
    let fault = match runtime.block_on(command::life(&env, order, command, &mut agent)) {
        Ok(code) => return code,
        Err(fault) => fault,
    };
    command::family::end();
    stderr::say(format_args!("worker: {fault}"));
    runtime.block_on(agent.tell_last(|status| status.error = Some(fault.to_string())));
    fault.exit_code()
}

/// Boot, join, restore, train, drain.
async fn life(env: &Env, agent: &mut AgentLink, build: Builder) -> Result<Leaving, Fault> {
    let order = Order::read(env).map_err(Fault::User)?;
    // Before the first status: the numerics class in it is that of the device.
    device::take(&order.spec, env.slot)?;
    let (link_event, link_events) = mpsc::channel(LINK_EVENTS_MAX);
    let links = Links::start(link_config(env, &order)?, link_event).await;
    let links = Arc::new(links.context("open the data plane").map_err(Fault::Node)?);
    agent.tell(status::blank(links.address().to_string(), elastic_tensor::probe(order.spec.train.dtype)));

    let (alarm, alarms) = Alarm::new();
    let (answer, answers) = mpsc::channel(ANSWERS_MAX);
    let (tasks, queue) = sync_channel(TASKS_MAX);
    let mut inputs = Inputs { answers, links: link_events, alarms };
    let (threads, mut last_place) = (threads(env, &order), place(env, &order)?);
    let order_dir = order.run_dir().to_path_buf();
    let (ready, mut booted) = oneshot::channel();
    let seat = Seat { env: env.clone(), order, build, threads, alarm: alarm.clone(), answer: answer.clone() };
    alarm.thread("train", move || seat.train(ready, queue));
    let Some(ready) = while_booting(agent, &mut booted, &mut inputs.alarms).await? else { return Ok(Leaving::Drained) };

    let sums = Sums::start(threads, ready.config.shards, &alarm, &answer);
    let round = ready.shared.state.read().expect("the state is whole").round;
    let mut speaker = Speaker::new(&agent.said(), ready.shared.clone(), ready.metrics, ready.published);
    let views = about::Views::of(order_dir.as_path());
    (speaker.failing, speaker.run_dir_id) = (ready.failing, ready.run_dir_id);
    let mut rank = MemberLoop::new(ready.config, speaker, Outputs { tasks, sums, links: links.clone() });
    rank.views = Some(views);
    let leaving = rank.run(round, agent, &mut inputs).await?;
    if leaving == Leaving::Finished {
        let view = rank.status().view;
        let writes = view.filter(|view| view.members.first().is_some_and(|first| first.worker == env.worker));
        rank.speaker.complete(&mut last_place, writes.map(|view| view.epoch));
        fail::point("finished");
    }
    let last = rank.status();
    drop(rank);
    agent.tell_last(|status| *status = last).await;
    // Peers wait for this worker's last words, too.
    if let Some(links) = Arc::into_inner(links) {
        links.close(LAST_FRAMES).await;
    }
    Ok(leaving)
}

fn link_config(env: &Env, order: &Order) -> Result<LinkConfig, Fault> {
    let tls = env.tls_dir.as_deref().map(TlsConfig::from_dir).transpose();
    Ok(LinkConfig {
        me: env.worker,
        job: env.job.clone(),
        config_digest: order.spec.config_digest(),
        secret: order.launch.secret.clone(),
        bind: env.bind.clone(),
        advertise: env.advertise.clone(),
        ports: env.ports.map(|(first, last)| first..=last),
        tls: tls.context("ELASTIC_TLS_DIR").map_err(Fault::Node)?,
        insecure: env.insecure,
        queue_bytes_max: LinkConfig::QUEUE_BYTES_MAX,
    })
}

/// Beats until the training thread has a state; `None` if the worker shall leave before that.
async fn while_booting(
    agent: &mut AgentLink,
    booted: &mut oneshot::Receiver<Result<Ready, Fault>>,
    alarms: &mut mpsc::Receiver<Fault>,
) -> Result<Option<Ready>, Fault> {
    let mut beat = tokio::time::interval(Duration::from_millis(BEAT_MS));
    loop {
        if agent.orders.borrow().leave {
            return Ok(None);
        }
        tokio::select! {
            Some(fault) = alarms.recv() => return Err(fault),
            Ok(ready) = &mut *booted => return ready.map(Some),
            Ok(()) = agent.orders.changed() => {}
            _ = beat.tick() => agent.tell(agent.said()),
        }
    }
}

/// What the training thread starts from.
struct Seat {
    env: Env,
    order: Order,
    build: Builder,
    threads: usize,
    alarm: Alarm,
    answer: mpsc::Sender<Event>,
}

/// What the member's loop learns from it once it has booted.
struct Ready {
    config: Config,
    shared: Arc<Shared>,
    metrics: Arc<Mutex<Option<Metrics>>>,
    published: Arc<Mutex<Option<Published>>>,
    failing: Failing,
    run_dir_id: Option<u64>,
}

impl Seat {
    fn booted(&self) -> Result<(Booted, Place), Fault> {
        let fault = |error| if bucket::is_passing(&error) { Fault::Node(error) } else { Fault::User(error) };
        Ok((boot::boot(&self.order, &self.build).map_err(fault)?, place(&self.env, &self.order)?))
    }

    fn run_dir_id(&self) -> Option<u64> {
        self.order.needs_shared_run_dir().then(|| run_dir::id(self.order.run_dir())).flatten()
    }

    fn train(self, ready: oneshot::Sender<Result<Ready, Fault>>, queue: Receiver<Task>) {
        let (booted, place) = match self.booted() {
            Ok(booted) => booted,
            Err(fault) => {
                // If nobody listens any more, this process is ending already.
                let _ = ready.send(Err(fault));
                return;
            }
        };
        let Booted { job, state, restored } = booted;
        let shared = Shared::new(job, state);
        let (metrics, published) = (Arc::default(), Arc::new(Mutex::new(restored)));
        let publisher = Publisher::start(place, shared.clone(), published.clone(), &self.alarm, self.answer.clone());
        let inputs = shared.clone();
        self.alarm.thread("inputs", move || inputs.inputs.make_ahead(&inputs.job));
        about::leave(&self.order, &self.env.worker, &shared.job);
        let (failing, run_dir_id) = (publisher.failing.clone(), self.run_dir_id());
        let config = member_config(&self.env, &shared);
        let trainer = Trainer::new(Pool::new(shared.clone(), self.threads), publisher, Arc::clone(&metrics));
        if ready.send(Ok(Ready { config, shared, metrics, published, failing, run_dir_id })).is_ok() {
            trainer.run(queue, self.answer, &self.alarm);
        }
    }
}

fn place(env: &Env, order: &Order) -> Result<Place, Fault> {
    let (checkpoints, bucket) = order.checkpoints().map_err(Fault::User)?;
    Ok(Place {
        checkpoints,
        bucket,
        origin: order.origin(&env.job),
        keep: order.keep(),
        events: order.run_dir().join("events.jsonl"),
        beside: about::Beside::of(order.run_dir()),
        board: Board::new(order.run_dir(), &order.launch.spec_json),
    })
}

fn member_config(env: &Env, shared: &Shared) -> Config {
    Config {
        me: env.worker,
        shards: shared.job.plan.shards,
        schedule: shared.job.schedule,
        layout: shared.job.layout(),
        checkpoint_every: shared.job.spec.checkpoint.every,
        log_rounds_max: LOG_ROUNDS_MAX,
        log_bytes_max: LOG_BYTES_MAX,
    }
}

/// Threads to compute with: the job's wish, else the agent's, else one a core.
fn threads(env: &Env, order: &Order) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let wished = [order.spec.resources.threads.into(), env.threads];
    wished.into_iter().find(|threads| *threads > 0).unwrap_or_else(cores)
}

/// Events and tasks that may wait. The protocol has a handful out; the rest is room for bursts.
const ANSWERS_MAX: usize = 1024;
const TASKS_MAX: usize = 1024;
const LINK_EVENTS_MAX: usize = 1024;
/// What was sent to peers last has this long to leave.
const LAST_FRAMES: Duration = Duration::from_secs(1);
