//! Draws the figures of the last run.

use std::error::Error;
use std::io;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::driver::{FORK, FORK_HUGE, MEMORIES, SPAWN, STARTUP};
use crate::figures::{self, Figure};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/fork_vs_spawn/fork_vs_spawn.svg");

const CURVES: [(&str, RGBColor); 3] =
    [(FORK, RGBColor(0, 114, 178)), (FORK_HUGE, RGBColor(230, 159, 0)), (SPAWN, RGBColor(0, 158, 115))];

/// The number of columns: one for each size of the parent's memory, and one for the work before the call of `start()`.
const COLUMNS: f64 = MEMORIES.len() as f64 + 1.0;
const BAR: f64 = 0.27;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

pub fn draw() -> io::Result<()> {
    let figures = figures::load()?;
    draw_all(&figures).map_err(|error| io::Error::other(error.to_string()))?;
    println!("{PATH}");
    Ok(())
}

fn draw_all(figures: &[Figure]) -> Drawn {
    let root = SVGBackend::new(PATH, (1000, 380)).into_drawing_area();
    // The background is filled, because the page that shows the picture may be dark.
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(540);
    draw_times(&left, figures)?;
    draw_memory(&right, figures)?;
    Ok(root.present()?)
}

fn draw_times(area: &Area<'_>, figures: &[Figure]) -> Drawn {
    let mut chart = ChartBuilder::on(area)
        .caption("Start of a worker, ms", ("sans-serif", 19))
        .margin(10)
        .x_label_area_size(45)
        .y_label_area_size(45)
        .build_cartesian_2d(-0.5..COLUMNS - 0.5, (0.08..100.0).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(COLUMNS as usize)
        .x_label_formatter(&|column| name_of(*column))
        .y_label_formatter(&f64::to_string)
        .x_desc("memory of the parent, MiB; at the right, work before the call instead")
        .label_style(("sans-serif", 15))
        .draw()?;
    for (curve, color) in CURVES {
        let points: Vec<_> = figures.iter().filter(|figure| figure.curve == curve).map(point).collect();
        let (memory, startup): (Vec<_>, Vec<_>) = points.into_iter().partition(|&(column, _)| column < COLUMNS - 1.0);
        chart
            .draw_series(LineSeries::new(memory.clone(), color.stroke_width(2)))?
            .label(curve)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], color.filled()));
        chart.draw_series(memory.into_iter().chain(startup).map(|at| Circle::new(at, 4, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(("sans-serif", 15))
        .border_style(TRANSPARENT)
        .legend_area_size(22)
        .draw()?;
    Ok(())
}

fn draw_memory(area: &Area<'_>, figures: &[Figure]) -> Drawn {
    let most = figures.iter().map(|figure| figure.private + figure.page_tables).max().unwrap_or(1) as f64;
    let mut chart = ChartBuilder::on(area)
        .caption("Memory of a worker, KiB: private, and page tables (light)", ("sans-serif", 19))
        .margin(10)
        .x_label_area_size(45)
        .y_label_area_size(55)
        .build_cartesian_2d(-0.5..COLUMNS - 1.5, 0.0..most * 1.1)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(COLUMNS as usize)
        .y_labels(6)
        .y_label_formatter(&f64::to_string)
        .x_label_formatter(&|column| name_of(*column))
        .x_desc("memory of the parent, MiB")
        .label_style(("sans-serif", 15))
        .draw()?;
    for (nth, (curve, color)) in CURVES.into_iter().enumerate() {
        let of_curve = figures.iter().filter(|figure| figure.curve == curve && figure.startup == 0);
        for figure in of_curve {
            let left = column(figure) + BAR * (nth as f64 - 1.5);
            let private = figure.private as f64;
            let both = (figure.private + figure.page_tables) as f64;
            let bar = |from, to| [(left, from), (left + BAR * 0.92, to)];
            chart.draw_series([
                Rectangle::new(bar(0.0, private), color.filled()),
                Rectangle::new(bar(private, both), color.mix(0.4).filled()),
            ])?;
        }
    }
    Ok(())
}

fn point(figure: &Figure) -> (f64, f64) {
    (column(figure), figure.start[1])
}

fn column(figure: &Figure) -> f64 {
    let column = MEMORIES.iter().position(|&memory| memory == figure.memory && figure.startup == 0);
    column.unwrap_or(MEMORIES.len()) as f64
}

/// Returns the label of a column, or an empty label for a position between two columns.
fn name_of(column: f64) -> String {
    let whole = column.round();
    match MEMORIES.get(whole as usize) {
        _ if whole != column => String::new(),
        Some(memory) => memory.to_string(),
        None => format!("{STARTUP} ms of work"),
    }
}
