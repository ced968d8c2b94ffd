//! Bars over time: how the layers of a pull go under several models, one below the other.
//!
//! A [`Chart`] is data. [`text`] draws it for a terminal, [`svg`] as a picture, [`html`] as a page
//! around that picture. All three use the same time axis for every model, so that lengths compare.

pub(super) mod html;
pub(super) mod svg;
pub(super) mod text;

use crate::model::LayerTimes;

/// What is drawn.
pub(super) struct Chart {
    pub(super) title: String,
    /// The rates it was drawn from.
    pub(super) assumed: String,
    pub(super) panels: Vec<Panel>,
}

/// One model.
pub(super) struct Panel {
    pub(super) name: String,
    pub(super) about: String,
    pub(super) seconds: f64,
    pub(super) rows: Vec<Row>,
}

/// One layer.
pub(super) struct Row {
    pub(super) number: usize,
    pub(super) size: String,
    /// In the order of time, without gaps from 0 on.
    pub(super) spans: Vec<Span>,
}

/// A stretch of a layer's time.
pub(super) struct Span {
    pub(super) activity: Activity,
    pub(super) begin: f64,
    pub(super) end: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Activity {
    Waiting,
    Downloading,
    /// Extracted while it is downloaded.
    Both,
    Extracting,
}

impl Activity {
    pub(super) const ALL: [Self; 4] =
        [Self::Waiting, Self::Downloading, Self::Both, Self::Extracting];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Downloading => "downloading",
            Self::Both => "downloading and extracting",
            Self::Extracting => "extracting",
        }
    }
}

impl Row {
    pub(super) fn new(number: usize, size: String, times: &LayerTimes) -> Self {
        let (download, extract) = (times.download, times.extract);
        let both = extract.begin.max(download.begin).min(download.end);
        let cuts = [
            (Activity::Waiting, 0.0, download.begin),
            (Activity::Downloading, download.begin, both),
            (Activity::Both, both, download.end),
            (Activity::Waiting, download.end, extract.begin),
            (Activity::Extracting, extract.begin.max(download.end), extract.end),
        ];
        let spans = cuts.into_iter().filter(|(_, begin, end)| end > begin);
        let spans = spans.map(|(activity, begin, end)| Span { activity, begin, end }).collect();
        Self { number, size, spans }
    }

    /// "waiting 4.0 s, downloading 4.0 s, extracting 4.0 s", for who cannot see the bar.
    pub(super) fn told(&self) -> String {
        let told = self.spans.iter().map(|span| {
            let (word, length) = (span.activity.word(), seconds(span.end - span.begin));
            format!("{word} {length}")
        });
        format!("layer {}, {}: {}", self.number, self.size, told.collect::<Vec<_>>().join(", "))
    }
}

impl Chart {
    /// The longest of all, which every bar is measured by; more than 0.
    pub(super) fn longest(&self) -> f64 {
        self.panels.iter().map(|panel| panel.seconds).fold(f64::MIN_POSITIVE, f64::max)
    }

    /// Whether the legend has to explain it.
    pub(super) fn shows(&self, activity: Activity) -> bool {
        let mut rows = self.panels.iter().flat_map(|panel| &panel.rows);
        rows.any(|row| row.spans.iter().any(|span| span.activity == activity))
    }

    /// Where the axis is marked: round seconds, at most `most` of them beside 0.
    pub(super) fn ticks(&self, most: usize) -> Vec<f64> {
        let longest = self.longest();
        let mut step = 10_f64.powf((longest / 1000.0).log10().floor().max(-6.0));
        #[allow(clippy::cast_precision_loss, reason = "a handful")]
        let most = most.max(1) as f64;
        for factor in [2.0, 2.5, 2.0].into_iter().cycle() {
            if longest / step <= most {
                break;
            }
            step *= factor;
        }
        let marks =
            std::iter::successors(Some(0_u32), |n| Some(n + 1)).map(|n| f64::from(n) * step);
        marks.take_while(|mark| *mark <= longest * (1.0 + 1e-9)).collect()
    }
}

/// Seconds, with the digits that a forecast has.
pub(super) fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.1 => format!("{s:.3} s"),
        s if s < 100.0 => format!("{s:.1} s"),
        s => format!("{s:.0} s"),
    }
}

/// A mark on the axis: 0, 2.5, 10.
pub(super) fn mark(seconds: f64) -> String {
    let text = format!("{seconds:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::{Load, Model, Rates, simulate};

    /// Three equal layers of 900 MB with the figures of the experiment.
    pub(crate) fn chart() -> Chart {
        let load = Load { bytes: 900e6, unpacked: 900e6, ..Load::default() };
        let panels = [Model::ContainerdInOrder, Model::Hoist].map(|model| {
            let told =
                simulate(&[load.clone(), load.clone(), load.clone()], &Rates::default(), model);
            let rows = told.layers.iter().enumerate();
            Panel {
                name: model.to_string(),
                about: model.describe().to_owned(),
                seconds: told.seconds,
                rows: rows
                    .map(|(i, times)| Row::new(i + 1, "900.0 MB".to_owned(), times))
                    .collect(),
            }
        });
        Chart {
            title: "<3> & layers".to_owned(),
            assumed: "download 225MB/s".to_owned(),
            panels: panels.into(),
        }
    }

    #[test]
    fn a_row_tells_all_of_its_time() {
        let chart = chart();
        assert_eq!(
            chart.panels[0].rows[1].told(),
            "layer 2, 900.0 MB: waiting 4.0 s, downloading 4.0 s, extracting 4.0 s"
        );
        assert_eq!(
            chart.panels[1].rows[0].told(),
            "layer 1, 900.0 MB: downloading and extracting 12.0 s"
        );
    }

    #[test]
    fn marks_are_round_and_few() {
        let mut chart = chart();
        assert_eq!(chart.ticks(8), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0]);
        assert_eq!(chart.ticks(4), [0.0, 5.0, 10.0, 15.0]);
        for panel in &mut chart.panels {
            panel.seconds = 0.0;
        }
        assert!(chart.ticks(5).len() <= 6);
        assert_eq!([mark(0.0), mark(2.5), mark(10.0)], ["0", "2.5", "10"]);
    }
}
