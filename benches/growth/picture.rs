//! Draws the figures of the last run.

use std::error::Error;
use std::io;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::common::record::Role;
use crate::figures::{self, Figure};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/growth/growth.svg");

const CURVES: [(Role, &str, RGBColor); 2] =
    [(Role::Ours, "taskfork", RGBColor(0, 114, 178)), (Role::Bare, "bare loop", RGBColor(230, 159, 0))];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

/// One of the six charts of the picture.
struct Panel {
    title: &'static str,
    /// Returns the low, the median and the high value of a figure.
    value: fn(&Figure) -> [f64; 3],
    /// The ends of the logarithmic vertical axis.
    range: (f64, f64),
}

const PANELS: [Panel; 6] = [
    Panel { title: "Start-up, ms", value: |figure| time(figure, 0), range: (0.2, 5_000.0) },
    Panel { title: "Replacement of one, ms", value: |figure| time(figure, 1), range: (0.1, 10.0) },
    Panel { title: "Rolling restart, ms", value: |figure| time(figure, 2), range: (1.0, 50_000.0) },
    Panel { title: "Stop, ms", value: |figure| time(figure, 3), range: (0.1, 5_000.0) },
    Panel { title: "Memory of the parent, KiB", value: |figure| [figure.memory as f64; 3], range: (50.0, 20_000.0) },
    Panel { title: "Descriptors of the parent", value: |figure| [figure.descriptors as f64; 3], range: (1.0, 100.0) },
];

pub fn draw() -> io::Result<()> {
    let figures = figures::load()?;
    draw_all(&figures).map_err(|error| io::Error::other(error.to_string()))?;
    println!("{PATH}");
    Ok(())
}

fn draw_all(figures: &[Figure]) -> Drawn {
    let root = SVGBackend::new(PATH, (1000, 620)).into_drawing_area();
    // The background is filled, because the page that shows the picture may be dark.
    root.fill(&WHITE)?;
    for (area, panel) in root.split_evenly((2, 3)).iter().zip(&PANELS) {
        draw_panel(area, panel, figures)?;
    }
    Ok(root.present()?)
}

fn draw_panel(area: &Area<'_>, panel: &Panel, figures: &[Figure]) -> Drawn {
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, ("sans-serif", 19))
        .margin(10)
        .margin_right(20)
        .x_label_area_size(42)
        .y_label_area_size(55)
        .build_cartesian_2d((3.0..10_000.0).log_scale(), (panel.range.0..panel.range.1).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&f64::to_string)
        .y_label_formatter(&f64::to_string)
        .x_desc("workers")
        .label_style(("sans-serif", 14))
        .draw()?;
    for (role, name, color) in CURVES {
        let of_role = figures.iter().filter(|figure| figure.role == role);
        let points: Vec<(f64, [f64; 3])> =
            of_role.map(|figure| (figure.workers as f64, (panel.value)(figure))).collect();
        let middles = points.iter().map(|&(x, [_, middle, _])| (x, middle));
        chart
            .draw_series(LineSeries::new(middles.clone(), color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], color.filled()));
        chart.draw_series(middles.map(|at| Circle::new(at, 3, color.filled())))?;
        let spreads = points.iter().map(|&(x, [low, _, high])| PathElement::new([(x, low), (x, high)], color));
        chart.draw_series(spreads)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(("sans-serif", 14))
        .border_style(TRANSPARENT)
        .legend_area_size(22)
        .draw()?;
    Ok(())
}

fn time(figure: &Figure, nth: usize) -> [f64; 3] {
    let spread = figure.times[nth];
    [spread.low, spread.median, spread.high]
}
