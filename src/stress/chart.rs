//! Charts as SVG text: lines and bars between two axes, each linear or logarithmic.
//!
//! Colours and fonts come from the page's style sheet (`page`), so that a chart follows the reader's light or dark
//! setting. A line's points carry their values as tooltips, which browsers show without any script.

use std::fmt::Write as _;

/// A chart.
#[derive(Debug)]
pub struct Chart {
    /// Below the plot, for the x axis.
    pub x: Axis,
    /// Beside it.
    pub y: Axis,
    /// Drawn first.
    pub bars: Vec<Bars>,
    /// Drawn over the bars.
    pub lines: Vec<Line>,
}

/// One direction of a chart.
#[derive(Debug)]
pub struct Axis {
    /// What it shows, with its unit.
    pub title: &'static str,
    /// The value at one end.
    pub from: f64,
    /// The value at the other.
    pub to: f64,
    /// Equal distances are equal factors.
    pub logarithmic: bool,
    /// Where values are written, and what.
    pub ticks: Vec<(f64, String)>,
}

/// A line through points.
#[derive(Debug)]
pub struct Line {
    /// Its class in the style sheet.
    pub class: String,
    /// The surface below it is filled.
    pub filled: bool,
    /// From left to right, each with its tooltip.
    pub points: Vec<(f64, f64, String)>,
}

/// Bars that stand on the x axis.
#[derive(Debug)]
pub struct Bars {
    /// Their class in the style sheet.
    pub class: String,
    /// From, to, height and tooltip of each.
    pub bars: Vec<(f64, f64, f64, String)>,
}

const WIDTH: f64 = 540.0;
const HEIGHT: f64 = 264.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 46.0;

/// Points that get a mark to hover over; on a denser line they would hide each other.
const MARKS_MAX: usize = 150;

impl Axis {
    /// From 0 to a round number not below `most`.
    pub fn from_zero(title: &'static str, most: f64, label: impl Fn(f64) -> String) -> Axis {
        let step = round_step(most.max(1e-9) / 4.0);
        let steps = (most / step).ceil().max(1.0);
        let ticks = (0..=steps as u32).map(|i| f64::from(i) * step);
        let ticks = ticks.map(|value| (value, label(value))).collect();
        Axis { title, from: 0.0, to: steps * step, logarithmic: false, ticks }
    }

    /// Logarithmic, around all values from `least` to `most`, both above 0.
    pub fn logarithmic(title: &'static str, least: f64, most: f64, label: impl Fn(f64) -> String) -> Axis {
        let from = round_down(least);
        let to = round_up(most.max(least * 1.01));
        let narrow = to / from <= 150.0;
        let mut ticks = Vec::new();
        for decade in from.log10().floor() as i32..=to.log10().ceil() as i32 {
            for digit in if narrow { &[1.0, 2.0, 5.0][..] } else { &[1.0][..] } {
                let value = digit * 10f64.powi(decade);
                if value >= from * 0.999 && value <= to * 1.001 {
                    ticks.push((value, label(value)));
                }
            }
        }
        Axis { title, from, to, logarithmic: true, ticks }
    }

    /// Where a value lies, 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let place = if self.logarithmic {
            (value.max(self.from) / self.from).ln() / (self.to / self.from).ln()
        } else {
            (value - self.from) / (self.to - self.from)
        };
        place.clamp(0.0, 1.0)
    }
}

/// 1, 2 or 5 times a power of ten, not below `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|digit| digit * power)
        .find(|&round| round >= step * 0.999)
        .unwrap_or(step)
}

fn round_down(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [5.0, 2.0, 1.0]
        .into_iter()
        .map(|digit| digit * power)
        .find(|&round| round <= value * 1.001)
        .unwrap_or(power)
}

fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|digit| digit * power)
        .find(|&round| round >= value * 0.999)
        .unwrap_or(10.0 * power)
}

impl Chart {
    /// As an element for a page.
    pub fn svg(&self, description: &str) -> String {
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
            escape(description)
        );
        self.axes(&mut out);
        for bars in &self.bars {
            self.draw_bars(bars, &mut out);
        }
        for line in &self.lines {
            self.draw_line(line, &mut out);
        }
        out.push_str("</svg>\n");
        out
    }

    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let across = LEFT + self.x.place(x) * (WIDTH - LEFT - RIGHT);
        let down = HEIGHT - BOTTOM - self.y.place(y) * (HEIGHT - TOP - BOTTOM);
        (across, down)
    }

    fn axes(&self, out: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (value, label) in &self.y.ticks {
            let (_, y) = self.at(self.x.from, *value);
            add(
                out,
                format_args!(
                    "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>"
                ),
            );
            let (x, y) = (LEFT - 8.0, y + 3.5);
            add(
                out,
                format_args!(
                    "<text class=\"tick\" x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{}</text>",
                    escape(label)
                ),
            );
        }
        for (value, label) in &self.x.ticks {
            let (x, _) = self.at(*value, self.y.from);
            let (end, below) = (bottom + 4.0, bottom + 17.0);
            add(
                out,
                format_args!(
                    "<line class=\"axis\" x1=\"{x:.1}\" y1=\"{bottom}\" x2=\"{x:.1}\" y2=\"{end}\"/>"
                ),
            );
            add(
                out,
                format_args!(
                    "<text class=\"tick\" x=\"{x:.1}\" y=\"{below}\" text-anchor=\"middle\">{}</text>",
                    escape(label)
                ),
            );
        }
        add(
            out,
            format_args!(
                "<line class=\"axis\" x1=\"{LEFT}\" y1=\"{bottom}\" x2=\"{right}\" y2=\"{bottom}\"/>"
            ),
        );
        let (middle, below) = ((LEFT + right) / 2.0, HEIGHT - 8.0);
        add(
            out,
            format_args!(
                "<text class=\"unit\" x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">{}</text>",
                escape(self.x.title)
            ),
        );
    }

    fn draw_bars(&self, bars: &Bars, out: &mut String) {
        add(out, format_args!("<g class=\"{}\">", bars.class));
        for (from, to, height, tooltip) in &bars.bars {
            let ((left, top), (right, bottom)) = (self.at(*from, *height), self.at(*to, self.y.from));
            let (width, tall) = ((right - left - 1.0).max(0.5), bottom - top);
            add(
                out,
                format_args!(
                    "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{tall:.1}\"><title>{}</title></rect>",
                    escape(tooltip)
                ),
            );
        }
        out.push_str("</g>\n");
    }

    fn draw_line(&self, line: &Line, out: &mut String) {
        let Some(((first, ..), (last, ..))) = line.points.first().zip(line.points.last()) else { return };
        let mut path = String::new();
        for (x, y, _) in &line.points {
            let (x, y) = self.at(*x, *y);
            let sign = if path.is_empty() { 'M' } else { 'L' };
            write!(path, "{sign}{x:.1} {y:.1}").expect("writing to memory cannot fail");
        }
        add(out, format_args!("<g class=\"{}\">", line.class));
        if line.filled {
            let ((start, bottom), (end, _)) = (self.at(*first, self.y.from), self.at(*last, self.y.from));
            add(
                out,
                format_args!("<path class=\"fill\" d=\"{path}L{end:.1} {bottom}L{start:.1} {bottom}Z\"/>"),
            );
        }
        add(out, format_args!("<path class=\"line\" d=\"{path}\"/>"));
        if line.points.len() <= MARKS_MAX {
            for (x, y, tooltip) in &line.points {
                let (x, y) = self.at(*x, *y);
                add(
                    out,
                    format_args!(
                        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\"><title>{}</title></circle>",
                        escape(tooltip)
                    ),
                );
            }
        }
        out.push_str("</g>\n");
    }
}

fn add(out: &mut String, element: std::fmt::Arguments<'_>) {
    writeln!(out, "{element}").expect("writing to memory cannot fail");
}

/// Text that may stand inside elements and attributes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_round_and_hold_every_value() {
        for most in [0.3, 1.0, 7.0, 99.0, 12_345.0] {
            let axis = Axis::from_zero("", most, |value| value.to_string());
            assert!(axis.to >= most, "{axis:?}");
            assert!((2..=9).contains(&axis.ticks.len()), "{axis:?}");
        }
        for (least, most) in [(1.0, 1.0), (0.4, 90.0), (3.0, 500_000.0)] {
            let axis = Axis::logarithmic("", least, most, |value| value.to_string());
            assert!(axis.from <= least && axis.to >= most, "{axis:?}");
            assert!((2..=9).contains(&axis.ticks.len()), "{axis:?}");
            assert_eq!(axis.place(axis.from), 0.0);
            assert_eq!(axis.place(axis.to * 10.0), 1.0);
        }
    }
}
