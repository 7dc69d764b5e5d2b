//! Joins that can be stopped.
//!
//! A join makes many rows out of few without ever waiting, so the task that drives it would not notice that it was cancelled until the
//! join has ended. Joins are wrapped so that they give way now and then, as the engine does for scans. A nested loop join
//! compares a whole batch with all rows of the other side before it looks up, found or not: it gets its batches in small
//! slices, and gives way before each.

use std::fmt;
use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties,
    ReplaceChildrenOptions, SendableRecordBatchStream,
};
use futures::{StreamExt, stream};

/// Rows that a nested loop join gets at once.
const SLICE_ROWS: usize = 128;

/// Names of the plans that multiply rows.
const MULTIPLY: &[&str] = &[
    "CrossJoinExec",
    "HashJoinExec",
    "NestedLoopJoinExec",
    "PiecewiseMergeJoinExec",
    "SortMergeJoinExec",
    "UnnestExec",
];

/// Wraps joins.
#[derive(Debug)]
pub(super) struct YieldInJoins;

impl PhysicalOptimizerRule for YieldInJoins {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let wrap = |plan: Arc<dyn ExecutionPlan>| {
            let plan = match (plan.name(), plan.children().as_slice()) {
                ("NestedLoopJoinExec", [build, probe]) => {
                    let children = vec![Arc::clone(build), SlicedExec::wrap(probe)];
                    let recompute = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
                    Arc::clone(&plan).replace_children(children, recompute)?
                }
                _ => plan,
            };
            if MULTIPLY.contains(&plan.name()) {
                Ok(Transformed::yes(Arc::new(CooperativeExec::new(plan)) as Arc<dyn ExecutionPlan>))
            } else {
                Ok(Transformed::no(plan))
            }
        };
        plan.transform_up(wrap).data()
    }

    fn name(&self) -> &str {
        "yield_in_joins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The input in slices, each after a pause for the runtime.
#[derive(Debug)]
struct SlicedExec {
    input: Arc<dyn ExecutionPlan>,
}

impl SlicedExec {
    fn wrap(input: &Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
        Arc::new(Self { input: Arc::clone(input) })
    }
}

impl DisplayAs for SlicedExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlicedExec: rows={SLICE_ROWS}")
    }
}

impl ExecutionPlan for SlicedExec {
    fn name(&self) -> &'static str {
        "SlicedExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(children.first().map_or(Arc::clone(&self) as Arc<dyn ExecutionPlan>, Self::wrap))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let schema = input.schema();
        let slices = input.flat_map(|batch| {
            stream::iter(match batch {
                Ok(batch) => (0..batch.num_rows())
                    .step_by(SLICE_ROWS)
                    .map(|at| Ok(batch.slice(at, SLICE_ROWS.min(batch.num_rows() - at))))
                    .collect(),
                Err(error) => vec![Err(error)],
            })
        });
        let paused = slices.then(|slice| async {
            tokio::task::yield_now().await;
            slice
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, paused)))
    }
}
