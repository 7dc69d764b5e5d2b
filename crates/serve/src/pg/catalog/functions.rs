//! Functions that PostgreSQL's clients call: who and where they are, their settings, and facts that are always the same here.

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::DataType;
use catchment_types::DEFAULT_REALM;
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr_fn::SimpleScalarUDF;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Signature, TypeSignature, Volatility};
use datafusion::prelude::SessionContext;
use parking_lot::Mutex;

use crate::pg::settings::{SERVER_VERSION, Settings};

/// Who a session belongs to.
#[derive(Debug, Clone)]
pub(in crate::pg) struct Identity {
    pub(in crate::pg) user: String,
    /// Number of the session; clients call it the process.
    pub(in crate::pg) number: i32,
    pub(in crate::pg) settings: Arc<Mutex<Settings>>,
}

/// Functions without state.
pub(super) fn register_shared(context: &SessionContext) {
    let text = |value: &str| ScalarValue::Utf8(Some(value.to_owned()));
    let null = ScalarValue::Utf8(None);
    let yes = ScalarValue::Boolean(Some(true));
    let no = ScalarValue::Boolean(Some(false));
    // Names are resolved where they are cast (`'x'::regclass`); these give what PostgreSQL gives for unknown names.
    for name in ["to_regclass", "to_regnamespace", "to_regproc", "to_regrole", "to_regtype"] {
        context.register_udf(constant(name, ScalarValue::Int32(None)));
    }
    let zero = ScalarValue::Int64(Some(0));
    let version = format!(
        "PostgreSQL {SERVER_VERSION} (Catchment {}) on {}, 64-bit",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH
    );
    context.register_udf(constant("version", text(&version)));
    context.register_udf(constant("current_database", text(DEFAULT_REALM)));
    context.register_udf(constant("current_catalog", text(DEFAULT_REALM)));
    context.register_udf(constant("current_schema", text(DEFAULT_REALM)));
    context.register_udf(constant("pg_get_userbyid", text("admin")));
    context.register_udf(constant("pg_char_to_encoding", ScalarValue::Int32(Some(6))));
    context.register_udf(constant("pg_my_temp_schema", ScalarValue::Int32(Some(0))));
    context.register_udf(constant("txid_current", ScalarValue::Int64(Some(1))));
    context.register_udf(constant("pg_advisory_unlock_all", text("")));
    for name in [
        "obj_description",
        "col_description",
        "shobj_description",
        "pg_get_viewdef",
        "pg_get_indexdef",
        "pg_get_triggerdef",
        "pg_get_ruledef",
        "pg_get_function_result",
        "pg_get_function_arguments",
        "pg_get_function_identity_arguments",
        "pg_get_functiondef",
        "pg_get_serial_sequence",
        "pg_get_constraintdef",
        "pg_get_expr",
        "pg_get_partkeydef",
        "pg_get_statisticsobjdef_columns",
        "pg_tablespace_location",
        "inet_client_addr",
        "inet_server_addr",
    ] {
        context.register_udf(constant(name, null.clone()));
    }
    for name in [
        "pg_function_is_visible",
        "pg_table_is_visible",
        "pg_type_is_visible",
        "pg_operator_is_visible",
        "pg_opclass_is_visible",
        "pg_opfamily_is_visible",
        "pg_collation_is_visible",
        "pg_conversion_is_visible",
        "pg_ts_config_is_visible",
        "pg_ts_dict_is_visible",
        "pg_ts_parser_is_visible",
        "pg_ts_template_is_visible",
        "pg_statistics_obj_is_visible",
        "pg_has_role",
    ] {
        context.register_udf(constant(name, yes.clone()));
    }
    for name in ["pg_is_in_recovery", "pg_is_other_temp_schema", "pg_relation_is_publishable"] {
        context.register_udf(constant(name, no.clone()));
    }
    for name in
        ["pg_table_size", "pg_indexes_size", "pg_database_size", "pg_relation_size", "pg_total_relation_size"]
    {
        context.register_udf(constant(name, zero.clone()));
    }
    for name in [
        "has_table_privilege",
        "has_schema_privilege",
        "has_database_privilege",
        "has_column_privilege",
        "has_any_column_privilege",
        "has_function_privilege",
        "has_sequence_privilege",
        "has_type_privilege",
        "has_language_privilege",
        "has_tablespace_privilege",
    ] {
        context.register_udf(function(name, DataType::Boolean, Volatility::Stable, has_privilege));
    }
    context.register_udf(function("current_schemas", text_list_type(), Volatility::Stable, |arguments| {
        let implicit = matches!(arguments, [ColumnarValue::Scalar(ScalarValue::Boolean(Some(true)))]);
        let names: &[&str] = if implicit { &["pg_catalog", DEFAULT_REALM] } else { &[DEFAULT_REALM] };
        let names: Vec<_> = names.iter().map(|name| ScalarValue::from(*name)).collect();
        Ok(ScalarValue::List(ScalarValue::new_list_nullable(&names, &DataType::Utf8)))
    }));
}

/// Functions of one session.
pub(super) fn register_own(context: &SessionContext, identity: Identity) {
    let user = ScalarValue::Utf8(Some(identity.user.clone()));
    for name in ["session_user", "current_user", "current_role", "user"] {
        context.register_udf(constant(name, user.clone()));
    }
    context.register_udf(constant("pg_backend_pid", ScalarValue::Int32(Some(identity.number))));
    let settings = Arc::clone(&identity.settings);
    context.register_udf(function("current_setting", DataType::Utf8, Volatility::Stable, move |arguments| {
        let name = text_argument(arguments, 0)?;
        let missing_ok =
            matches!(arguments.get(1), Some(ColumnarValue::Scalar(ScalarValue::Boolean(Some(true)))));
        let value = settings.lock().get(&name).map(str::to_owned);
        if value.is_none() && !missing_ok {
            return Err(DataFusionError::Execution(format!(
                "unrecognized configuration parameter \"{name}\""
            )));
        }
        Ok(ScalarValue::Utf8(value))
    }));
    let settings = identity.settings;
    context.register_udf(function("set_config", DataType::Utf8, Volatility::Volatile, move |arguments| {
        let (name, value) = (text_argument(arguments, 0)?, text_argument(arguments, 1)?);
        let local = matches!(arguments.get(2), Some(ColumnarValue::Scalar(ScalarValue::Boolean(Some(true)))));
        let mut settings = settings.lock();
        settings
            .set(&name, Some(&value), local)
            .map_err(|error| DataFusionError::Execution(error.message().to_owned()))?;
        Ok(ScalarValue::Utf8(settings.get(&name).map(str::to_owned)))
    }));
}

/// Whoever is connected may read everything and change nothing; the privilege is the last argument.
fn has_privilege(arguments: &[ColumnarValue]) -> Result<ScalarValue> {
    let asked = text_argument(arguments, arguments.len().saturating_sub(1))?.to_ascii_uppercase();
    let reads = |privilege: &str| matches!(privilege.trim(), "SELECT" | "USAGE" | "CONNECT" | "EXECUTE");
    Ok(ScalarValue::Boolean(Some(asked.split(',').any(reads))))
}

/// An argument that must be one text.
fn text_argument(arguments: &[ColumnarValue], index: usize) -> Result<String> {
    let value = match arguments.get(index) {
        Some(ColumnarValue::Scalar(value)) => value.try_as_str().flatten().map(str::to_owned),
        Some(ColumnarValue::Array(array)) if !array.is_empty() => {
            let array = arrow::compute::cast(array, &DataType::Utf8)?;
            let array = array.as_string::<i32>();
            array.is_valid(0).then(|| array.value(0).to_owned())
        }
        _ => None,
    };
    value.ok_or_else(|| DataFusionError::Execution(format!("argument {} must be a text", index + 1)))
}

fn text_list_type() -> DataType {
    DataType::new_list(DataType::Utf8, true)
}

/// A function of any arguments that always gives the same.
fn constant(name: &str, value: ScalarValue) -> ScalarUDF {
    function(name, value.data_type(), Volatility::Stable, move |_| Ok(value.clone()))
}

fn function(
    name: &str,
    returns: DataType,
    volatility: Volatility,
    body: impl Fn(&[ColumnarValue]) -> Result<ScalarValue> + Send + Sync + 'static,
) -> ScalarUDF {
    let signature = Signature::one_of(vec![TypeSignature::Nullary, TypeSignature::VariadicAny], volatility);
    let body = Arc::new(move |arguments: &[ColumnarValue]| body(arguments).map(ColumnarValue::Scalar));
    SimpleScalarUDF::new_with_signature(name, signature, returns, body).into()
}
