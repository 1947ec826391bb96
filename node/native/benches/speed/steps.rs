//! Where a model's time goes: each step of its plan, between the moments at which a run asks whether it was
//! cancelled.

use std::cell::RefCell;

use roost_native::{Input, inspect};

use crate::models::Row;
use crate::{Count, Failure, clock, native};

/// Runs that a step's time is the median of.
const RUNS: usize = 21;

/// Prints the median time of each step, and its share.
pub fn print(row: &Row) -> Result<(), Failure> {
    let mut session = native(row)?;
    let shapes: Vec<Vec<usize>> = row.inputs.iter().map(|tensor| tensor.shape().to_vec()).collect();
    let Some(plan) = inspect::plan(session.program(), &shapes)? else {
        println!("{}: no plan", row.name);
        return Ok(());
    };
    let inputs: Vec<Input<'_>> = row.inputs.iter().map(Input::from).collect();
    session.run(&inputs, &mut Count(0), &|| false)?;
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); plan.steps.len()];
    for _ in 0..RUNS {
        // What is asked before each step, and the end after the last.
        let asked = RefCell::new(Vec::with_capacity(4096));
        session.run(&inputs, &mut Count(0), &|| {
            asked.borrow_mut().push(clock::seconds());
            false
        })?;
        let mut asked = asked.into_inner();
        asked.push(clock::seconds());
        for (step, pair) in asked.windows(2).enumerate() {
            let at = step % times.len();
            times[at].push((pair[1] - pair[0]) * 1e6);
        }
    }
    let medians: Vec<f64> = times
        .iter_mut()
        .map(|list| {
            list.sort_by(f64::total_cmp);
            list[list.len() / 2]
        })
        .collect();
    let whole: f64 = medians.iter().sum();
    let (parts, arena) = (plan.parts, plan.arena_bytes);
    println!("{}: {whole:.1} µs, {parts} times, arena {arena} bytes", row.name);
    for (step, micros) in plan.steps.iter().zip(medians) {
        let share = 100.0 * micros / whole;
        println!("{micros:10.1} µs {share:5.1} %  {:30} {:24} {}", step.kernel, step.output, step.node);
    }
    Ok(())
}
