//! Views and worker orders on the wire.

use crate::convert::{Wire, WireError, address, each, list, maybe, message, needed, node, rank};
use crate::pb;
use elastic_spec::limits::{SHARDS_MAX, WORKERS_MAX};
use elastic_spec::view::{Pace, Role, View, ViewMember, WorkerOrder};
use elastic_spec::{Epoch, WorkerId};

message!(View, "view");
message!(WorkerOrder, "order");

impl Wire for View {
    type Pb = pb::View;

    fn read(pb: pb::View) -> Result<View, WireError> {
        let view = View {
            job: crate::convert::job("job", pb.job)?,
            epoch: needed("epoch", pb.epoch)?,
            pace: pace(pb.pace)?,
            members: list("members", pb.members, WORKERS_MAX.into())?,
            shard_map: each("shard_map", pb.shard_map, SHARDS_MAX.into(), rank)?,
        };
        view.check().map_err(|e| WireError::new("", e))?;
        Ok(view)
    }

    fn write(self) -> pb::View {
        pb::View {
            job: self.job.to_string(),
            epoch: Some(self.epoch.write()),
            pace: match self.pace {
                Pace::Run => pb::Pace::Run.into(),
                Pace::Pause => pb::Pace::Pause.into(),
            },
            members: self.members.into_iter().map(Wire::write).collect(),
            shard_map: self.shard_map.into_iter().map(|r| r.0.into()).collect(),
        }
    }
}

fn pace(value: i32) -> Result<Pace, WireError> {
    match pb::Pace::try_from(value) {
        Ok(pb::Pace::Run) => Ok(Pace::Run),
        Ok(pb::Pace::Pause) => Ok(Pace::Pause),
        Ok(pb::Pace::Unspecified) | Err(_) => Err(WireError::new("pace", format_args!("{value} is not a pace"))),
    }
}

impl Wire for Epoch {
    type Pb = pb::Epoch;

    fn read(pb: pb::Epoch) -> Result<Epoch, WireError> {
        Ok(Epoch::new(pb.term, pb.r#gen))
    }

    fn write(self) -> pb::Epoch {
        pb::Epoch { term: self.term.0, r#gen: self.gen_.0 }
    }
}

impl Wire for ViewMember {
    type Pb = pb::ViewMember;

    fn read(pb: pb::ViewMember) -> Result<ViewMember, WireError> {
        Ok(ViewMember {
            worker: WorkerId(pb.worker),
            node: node("node", pb.node)?,
            address: address("address", pb.address)?,
            role: role("role", pb.role)?,
        })
    }

    fn write(self) -> pb::ViewMember {
        pb::ViewMember {
            worker: self.worker.0,
            node: self.node.to_string(),
            address: self.address,
            role: role_number(self.role),
        }
    }
}

pub(crate) fn role(field: &str, value: i32) -> Result<Role, WireError> {
    match pb::Role::try_from(value) {
        Ok(pb::Role::Active) => Ok(Role::Active),
        Ok(pb::Role::Learner) => Ok(Role::Learner),
        Ok(pb::Role::Unspecified) | Err(_) => Err(WireError::new(field, format_args!("{value} is not a role"))),
    }
}

pub(crate) fn role_number(role: Role) -> i32 {
    match role {
        Role::Active => pb::Role::Active.into(),
        Role::Learner => pb::Role::Learner.into(),
    }
}

impl Wire for WorkerOrder {
    type Pb = pb::WorkerOrder;

    fn read(pb: pb::WorkerOrder) -> Result<WorkerOrder, WireError> {
        Ok(WorkerOrder { view: maybe("view", pb.view)?, leave: pb.leave, restarts: pb.restarts })
    }

    fn write(self) -> pb::WorkerOrder {
        pb::WorkerOrder { view: self.view.map(Wire::write), leave: self.leave, restarts: self.restarts }
    }
}
