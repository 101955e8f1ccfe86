//! Prometheus' text format 0.0.4: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::Write;

use super::histogram::Histogram;

/// What a family of numbers is.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by upper bound.
    Histogram,
}

/// Families of numbers, written one after the other.
#[derive(Default)]
pub struct Text {
    text: String,
    name: &'static str,
}

impl Text {
    /// Begins the family `name`; what follows belongs to it.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.name = name;
        self.push(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// One number of the family.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        self.line("", labels, value);
    }

    /// A family of one number.
    pub fn gauge(&mut self, name: &'static str, help: &str, value: f64) {
        self.family(name, Kind::Gauge, help);
        self.sample(&[], value);
    }

    /// One histogram of the family.
    pub fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        for (bound, count) in histogram.cumulative() {
            let bound = if bound.is_finite() {
                bound.to_string()
            } else {
                "+Inf".to_owned()
            };
            let labels = [labels, &[("le", bound.as_str())]].concat();
            self.line("_bucket", &labels, count as f64);
        }
        self.line("_sum", labels, histogram.sum_s());
        self.line("_count", labels, histogram.count() as f64);
    }

    /// The text.
    pub fn finish(self) -> String {
        self.text
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64) {
        let named: Vec<String> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        let labels = if named.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", named.join(","))
        };
        let name = self.name;
        self.push(format_args!("{name}{suffix}{labels} {value}\n"));
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.text.write_fmt(text);
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let mut histogram = Histogram::new(&[0.5]);
        histogram.add(0.25);
        histogram.add(2.0);
        let mut text = Text::default();
        text.family("a_seconds", Kind::Histogram, "How long");
        text.histogram(&[("route", "/\"x\"\\")], &histogram);
        text.gauge("b_bytes", "How much", 4096.0);
        insta::assert_snapshot!(text.finish(), @r#"
        # HELP a_seconds How long
        # TYPE a_seconds histogram
        a_seconds_bucket{route="/\"x\"\\",le="0.5"} 1
        a_seconds_bucket{route="/\"x\"\\",le="+Inf"} 2
        a_seconds_sum{route="/\"x\"\\"} 2.25
        a_seconds_count{route="/\"x\"\\"} 2
        # HELP b_bytes How much
        # TYPE b_bytes gauge
        b_bytes 4096
        "#);
    }
}
