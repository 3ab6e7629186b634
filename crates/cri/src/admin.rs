//! The admin service: what an operator needs beyond CRI. Used by `bowline image`, `pull`, `doctor`,
//! `ops` and `top`.

mod archive;
mod leftovers;

use std::collections::BTreeMap;
use std::time::Duration;

use bowline_cri_proto::admin::admin_service_server::{AdminService, AdminServiceServer};
use bowline_cri_proto::admin::{
    ExportRequest, ExportResponse, ImportRequest, ImportResponse, LeftoversRequest, LeftoversResponse,
    Operation, OperationStage, OperationsRequest, OperationsResponse, Pull, PullProgressRequest,
    PullProgressResponse, PullStage,
};
use bowline_image::{PullProgress, Stage};
use bowline_pods::Pods;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

/// The longest message either way; archives come and go in pieces.
const MAX_MESSAGE: usize = 4 << 20;

/// The admin service of this daemon, for the same socket as CRI.
pub fn admin_service(pods: Pods) -> AdminServiceServer<AdminCalls> {
    AdminServiceServer::new(AdminCalls { pods })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// Answers the calls of the admin service.
pub struct AdminCalls {
    pods: Pods,
}

#[tonic::async_trait]
impl AdminService for AdminCalls {
    async fn import(
        &self,
        request: Request<Streaming<ImportRequest>>,
    ) -> Result<Response<ImportResponse>, Status> {
        archive::import(self.pods.images(), request.into_inner()).await.map(Response::new)
    }

    async fn export(
        &self,
        request: Request<ExportRequest>,
    ) -> Result<Response<BoxStream<ExportResponse>>, Status> {
        archive::export(self.pods.images(), request.into_inner()).await.map(Response::new)
    }

    async fn pull_progress(
        &self,
        _: Request<PullProgressRequest>,
    ) -> Result<Response<PullProgressResponse>, Status> {
        let pulls = self.pods.images().pull_progress().into_iter().map(shown).collect();
        Ok(Response::new(PullProgressResponse { pulls }))
    }

    async fn operations(
        &self,
        _: Request<OperationsRequest>,
    ) -> Result<Response<OperationsResponse>, Status> {
        let operations = self.pods.operations().into_iter().map(under_way).collect();
        Ok(Response::new(OperationsResponse { operations }))
    }

    async fn leftovers(&self, _: Request<LeftoversRequest>) -> Result<Response<LeftoversResponse>, Status> {
        leftovers::leftovers(&self.pods).await.map(Response::new)
    }
}

/// How many leftovers there are of each kind.
pub(crate) async fn leftover_counts(pods: &Pods) -> Result<BTreeMap<String, u64>, Status> {
    let mut counts = BTreeMap::new();
    for leftover in leftovers::leftovers(pods).await?.leftovers {
        *counts.entry(leftover.kind).or_default() += 1;
    }
    Ok(counts)
}

fn under_way(operation: bowline_pods::Operation) -> Operation {
    let stage =
        |(name, age): (&str, Duration)| OperationStage { name: name.into(), age_ms: age.as_millis() as u64 };
    Operation {
        number: operation.number,
        kind: operation.kind.into(),
        id: operation.id,
        name: operation.name,
        age_ms: operation.age.as_millis() as u64,
        stages: operation.stages.into_iter().map(stage).collect(),
    }
}

fn shown(progress: PullProgress) -> Pull {
    let stage = match progress.stage {
        Stage::Resolve => PullStage::Resolve,
        Stage::Layers => PullStage::Layers,
        Stage::Commit => PullStage::Commit,
    };
    Pull {
        reference: progress.reference,
        stage: stage as i32,
        bytes_done: progress.bytes_done,
        bytes_total: progress.bytes_total,
        layers_done: progress.layers_done as u32,
        layers_total: progress.layers_total as u32,
        age_ms: progress.age.as_millis() as u64,
    }
}
