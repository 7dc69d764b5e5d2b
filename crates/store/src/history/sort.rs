//! The order of rows in files: device, then time; for rollups also the metric, so that equal keys meet in merges.
//!
//! Rows of one device come from one partition in the order of arrival, mostly ascending in time already. So devices are
//! ranked once, rows are dealt to their device by counting, and each device's rows are sorted by time with a stable
//! sort that is linear for runs: no string is compared a row.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch, StringViewArray};
use arrow::datatypes::TimestampMicrosecondType;
use foldhash::HashMap;
use foldhash::HashMapExt;

use crate::tables::TableId;

/// Row numbers of `rows` in file order, split by period; the key is the period's name.
pub(super) fn by_period(table: TableId, rows: &RecordBatch) -> BTreeMap<String, Vec<u32>> {
    let times = times(table, rows);
    let mut periods = BTreeMap::<String, Vec<u32>>::new();
    let mut part = Vec::new();
    let (mut name, mut range) = (String::new(), 0..0);
    for row in order(table, rows) {
        let time = times[row as usize];
        if !range.contains(&time) {
            if !part.is_empty() {
                periods.entry(name).or_default().append(&mut part);
            }
            (name, range) = table.period().of(time);
        }
        part.push(row);
    }
    if !part.is_empty() {
        periods.entry(name).or_default().append(&mut part);
    }
    periods
}

/// Row numbers of `rows` in file order.
fn order(table: TableId, rows: &RecordBatch) -> Vec<u32> {
    let times = times(table, rows);
    let metrics = (table == TableId::MetricRollups).then(|| strings(rows, "metric_name"));
    let (ranks, devices) = device_ranks(strings(rows, "device_id"));

    let mut starts = vec![0_usize; devices + 1];
    for &rank in &ranks {
        starts[rank as usize + 1] += 1;
    }
    for device in 0..devices {
        starts[device + 1] += starts[device];
    }
    let mut next = starts.clone();
    let mut order = vec![0_u32; ranks.len()];
    for (row, &rank) in (0..).zip(&ranks) {
        order[next[rank as usize]] = row;
        next[rank as usize] += 1;
    }
    for device in starts.windows(2) {
        let rows = &mut order[device[0]..device[1]];
        match metrics {
            None => rows.sort_by_key(|&row| times[row as usize]),
            Some(metrics) => rows.sort_by(|&a, &b| {
                let (a, b) = (a as usize, b as usize);
                times[a].cmp(&times[b]).then_with(|| metrics.value(a).cmp(metrics.value(b)))
            }),
        }
    }
    order
}

/// For each row the rank of its device among all, and how many devices there are.
fn device_ranks(devices: &StringViewArray) -> (Vec<u32>, usize) {
    let mut numbers = HashMap::<&str, u32>::new();
    let mut names = Vec::new();
    let mut last = None;
    let mut ranks = Vec::with_capacity(devices.len());
    for row in 0..devices.len() {
        let device = devices.value(row);
        // Events have several readings: neighbours are often of one device.
        let number = match last {
            Some((name, number)) if name == device => number,
            _ => *numbers.entry(device).or_insert_with(|| {
                names.push(device);
                names.len() as u32 - 1
            }),
        };
        last = Some((device, number));
        ranks.push(number);
    }
    let mut sorted: Vec<u32> = (0..names.len() as u32).collect();
    sorted.sort_unstable_by_key(|&number| names[number as usize]);
    let mut rank_of = vec![0; names.len()];
    for (rank, &number) in (0..).zip(&sorted) {
        rank_of[number as usize] = rank;
    }
    for rank in &mut ranks {
        *rank = rank_of[*rank as usize];
    }
    (ranks, names.len())
}

/// The values of the table's time column.
pub(super) fn times(table: TableId, rows: &RecordBatch) -> &[i64] {
    let column = &rows[table.time_column()];
    column.as_primitive::<TimestampMicrosecondType>().values()
}

pub(super) fn strings<'a>(rows: &'a RecordBatch, column: &str) -> &'a StringViewArray {
    rows[column].as_string_view()
}
