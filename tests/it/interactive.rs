//! Clicks and strokes through the program: a model that takes clicks, the command line, and a server with its real worker.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use fewlabel::imaging::distance::distance_mm;
use fewlabel::imaging::phantom::{ORGANS, PhantomOptions, torso};
use fewlabel::imaging::{
    Budget, Geometry, LabelFormat, Volume, metrics, read_label, write_label, write_scan,
};
use fewlabel::model::Manifest;
use serde_json::{Value, json};

use crate::pretrain::{command, dataset, done, text};
use crate::support::{Process, Reply};

/// Learned from phantoms 0 to 5 with clicks; made once for all tests.
fn model() -> &'static Path {
    static MADE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, model) = MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let data = dataset(dir.path(), 6);
        let model = dir.path().join("model");
        let options = [
            "--clicks",
            "--steps",
            "300",
            "--val-split",
            "0",
            "--spacing",
            "own",
            "--hu-window=-150,250",
        ];
        done(&mut command("train", &data, &model, &options));
        (dir, model)
    });
    model
}

fn held_out(seed: u64) -> (Volume<f32>, Volume<u16>) {
    let options = PhantomOptions {
        shape: Some([20, 40, 40]),
        ..PhantomOptions::small()
    };
    let case = torso(seed, &options);
    (case.scan, case.label)
}

fn label(path: &Path) -> Volume<u16> {
    let mut file = read_label(path, &Budget::default()).unwrap();
    Volume::new(file.geometry, file.layers.swap_remove(0)).unwrap()
}

fn infer(image: &Path, out: &Path, clicks: &[String]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fewlabel"));
    command.arg("infer").arg("--model").arg(model()).arg(image);
    command
        .args(["--device", "cpu", "--json"])
        .arg("-o")
        .arg(out);
    for click in clicks {
        command.args(["--click", click]);
    }
    command.output().unwrap()
}

fn name(class: u16) -> &'static str {
    match class {
        0 => "background",
        class => ORGANS[usize::from(class) - 1],
    }
}

/// For each class the voxel `[i, j, k]` deepest in what was missed of it.
fn corrections(found: &Volume<u16>, truth: &Volume<u16>) -> Vec<(u16, [usize; 3])> {
    let shape = truth.geometry.shape();
    let deepest = |class: u16| {
        let missed = |v: usize| truth.voxels[v] == class && found.voxels[v] != class;
        let depth = distance_mm(shape, truth.geometry.spacing_mm(), |v| !missed(v));
        let (v, mm) = depth.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
        let [_, h, w] = shape;
        (*mm > 0.0).then_some((class, [v % w, v / w % h, v / (w * h)]))
    };
    (0..=ORGANS.len() as u16).filter_map(deepest).collect()
}

fn mean_dice(found: &Volume<u16>, truth: &Volume<u16>) -> f64 {
    let dice = metrics::dice_per_class(&found.voxels, &truth.voxels, ORGANS.len() + 1);
    metrics::mean(dice.into_iter().skip(1)).unwrap()
}

#[test]
fn clicks_on_mistakes_are_seen() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = Manifest::read(model()).unwrap();
    assert_eq!(manifest.name, "pct-net-s-clicks");
    assert_eq!(manifest.network.in_chns, 2 + ORGANS.len());
    let (mut before, mut after, mut right, mut all) = (0.0, 0.0, 0, 0);
    for seed in 100..104 {
        let (scan, truth) = held_out(seed);
        let image = dir.path().join(format!("{seed}.nii.gz"));
        write_scan(&image, &scan, LabelFormat::NiftiGz).unwrap();
        let [plain, clicked] =
            ["plain", "clicked"].map(|n| dir.path().join(format!("{seed}-{n}.nii.gz")));
        assert!(infer(&image, &plain, &[]).status.success());
        let first = label(&plain);
        let clicks = corrections(&first, &truth);
        let said: Vec<String> = clicks
            .iter()
            .map(|(class, [i, j, k])| format!("{}={i},{j},{k}", name(*class)))
            .collect();
        let output = infer(&image, &clicked, &said);
        assert!(output.status.success(), "{}", text(&output));
        let second = label(&clicked);
        before += mean_dice(&first, &truth) / 4.0;
        after += mean_dice(&second, &truth) / 4.0;
        let [_, h, w] = truth.geometry.shape();
        for (class, [i, j, k]) in clicks {
            all += 1;
            right += usize::from(second.voxels[(k * h + j) * w + i] == class);
        }
    }
    eprintln!(
        "Dice {before:.3} without, {after:.3} with clicks; {right} of {all} clicked voxels as clicked"
    );
    // Without clicks all of these voxels were wrong.
    assert!(all > 0);
    assert_eq!(right, all, "voxels that are what was clicked");
    assert!(after > before, "{before} {after}");
}

#[test]
fn a_model_without_clicks_is_where_one_with_clicks_begins() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 2);
    let [plain, clicks, same] = ["plain", "clicks", "same"].map(|n| dir.path().join(n));
    let options = |more: &[&'static str]| [&["--steps", "2", "--val-split", "0"], more].concat();
    done(&mut command("train", &data, &plain, &options(&[])));
    let init = plain.to_str().unwrap().to_owned();
    let mut train = command("train", &data, &clicks, &options(&["--clicks", "--init"]));
    let said = done(train.arg(&init));
    assert!(
        said.contains("0 started afresh"),
        "the wider convolution keeps what it knew: {said}"
    );
    let manifest = Manifest::read(&clicks).unwrap();
    assert!(manifest.clicks.is_some());
    // A model that takes clicks stays one, also without the option.
    let mut train = command("train", &data, &same, &options(&["--init"]));
    done(train.arg(&clicks));
    assert_eq!(Manifest::read(&same).unwrap().name, manifest.name);
    assert!(Manifest::read(&plain).unwrap().clicks.is_none());

    let image = data.join("imagesTr/case_0.nii.gz");
    for (model, clicks, word) in [
        (&plain, &["liver=1,2,3"][..], "--clicks"),
        (&clicks, &["liver=1,2,20"], "(1, 2, 20) lies outside"),
        (&clicks, &["lung=1,2,3"], "vertebrae"),
        (&clicks, &["liver=1,2"], "LABEL=I,J,K"),
        (&clicks, &["liver"], "LABEL=I,J,K"),
    ] {
        let mut infer = Command::new(env!("CARGO_BIN_EXE_fewlabel"));
        infer.arg("infer").arg("--model").arg(model).arg(&image);
        infer
            .args(["--device", "cpu", "-o"])
            .arg(dir.path().join("out.nii.gz"));
        for click in clicks {
            infer.args(["--click", click]);
        }
        let output = infer.output().unwrap();
        assert_ne!(output.status.code(), Some(0));
        let said = text(&output);
        assert!(said.contains(word) && !said.contains("panicked"), "{said}");
    }
}

/// A server of one study with its own worker, with the click model.
struct Site {
    folder: tempfile::TempDir,
    server: Process,
    scan: Volume<f32>,
    truth: Volume<u16>,
}

impl Site {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let studies = folder.path().join("studies");
        std::fs::create_dir(&studies).unwrap();
        // Stored in another order than the network's.
        let options = PhantomOptions {
            shape: Some([20, 40, 40]),
            random_orientation: true,
            ..PhantomOptions::small()
        };
        let case = torso(104, &options);
        write_scan(
            &studies.join("case.nii.gz"),
            &case.scan,
            LabelFormat::NiftiGz,
        )
        .unwrap();
        let log = folder.path().join("log");
        let arguments = [
            "--studies".as_ref(),
            studies.as_os_str(),
            "--model".as_ref(),
            model().as_os_str(),
            "--device".as_ref(),
            "cpu".as_ref(),
        ];
        Self {
            server: Process::serve(&log, arguments),
            scan: case.scan,
            truth: case.label,
            folder,
        }
    }

    async fn infer(&self, model: &str, params: Value, strokes: Option<&[u8]>) -> Reply {
        let params = params.to_string();
        let mut parts = vec![("params", "", params.as_bytes())];
        if let Some(strokes) = strokes {
            parts.push(("label", "/home/u/strokes.nii.gz", strokes));
        }
        let path = format!("/infer/{model}?image=case&output=image");
        self.server.form("POST", &path, &parts).await
    }

    /// The label in a good answer.
    fn label(&self, reply: &Reply) -> Volume<u16> {
        assert_eq!(reply.status, 200, "{}", reply.text());
        let path = self.folder.path().join("answer");
        std::fs::write(&path, &reply.body).unwrap();
        let found = label(&path);
        assert!(
            found.geometry.same_grid(&self.scan.geometry, 1e-3),
            "the grid of the image"
        );
        found
    }

    fn refused(&self, reply: &Reply, words: &str) {
        assert_eq!(reply.status, 422, "{}", reply.text());
        let detail = reply.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(words), "{detail}");
    }

    /// The voxel `[i, j, k]` nearest to the middle of an organ that belongs to it.
    fn inside(&self, class: u16) -> [usize; 3] {
        let shape = self.truth.geometry.shape();
        let depth = distance_mm(shape, self.truth.geometry.spacing_mm(), |v| {
            self.truth.voxels[v] != class
        });
        let v = (0..depth.len())
            .max_by(|a, b| depth[*a].total_cmp(&depth[*b]))
            .unwrap();
        let [_, h, w] = shape;
        [v % w, v / w % h, v / (w * h)]
    }

    fn at(&self, volume: &Volume<u16>, [i, j, k]: [usize; 3]) -> u16 {
        let [_, h, w] = volume.geometry.shape();
        volume.voxels[(k * h + j) * w + i]
    }

    /// A label file with these strokes: value 1 the organ, 2 background, 3 foreground.
    fn strokes(&self, geometry: Geometry, value: impl Fn(usize) -> u16) -> Vec<u8> {
        let voxels = (0..geometry.voxel_count()).map(value).collect();
        let path = self.folder.path().join("strokes.nii.gz");
        let volume = Volume::new(geometry, voxels).unwrap();
        write_label(&path, &volume, &[], LabelFormat::NiftiGz).unwrap();
        std::fs::read(path).unwrap()
    }
}

#[tokio::test]
async fn points_as_slicer_sends_them() {
    let site = Site::start();
    let info = site.server.get("/info/").await.json();
    let kinds: Vec<(String, String)> = info["models"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, entry)| (name.clone(), entry["type"].as_str().unwrap().to_owned()))
        .collect();
    let expected = [
        ("pct-net-s-clicks", "segmentation"),
        ("pct-net-s-clicks-deepedit", "deepedit"),
        ("pct-net-s-clicks-deepgrow", "deepgrow"),
        ("Histogram+GraphCut", "scribbles"),
        ("GMM+GraphCut", "scribbles"),
    ];
    assert_eq!(
        kinds,
        expected.map(|(name, kind)| (name.to_owned(), kind.to_owned()))
    );
    assert_eq!(info["trainers"].as_object().unwrap().len(), 1);

    let plain = site.label(&site.infer("pct-net-s-clicks", json!({}), None).await);
    let edit = "pct-net-s-clicks-deepedit";
    let none = json!({"liver": [], "spleen": [], "label": "liver"});
    assert!(
        site.label(&site.infer(edit, none, None).await) == plain,
        "without points it is the model alone"
    );
    let mut changed = 0;
    for (value, name) in (1u16..).zip(ORGANS) {
        let point = site.inside(value);
        let clicked = site.label(&site.infer(edit, json!({*name: [point]}), None).await);
        changed += usize::from(clicked != plain);
        // The same request to a worker that has forgotten nothing, and the one before it, give the same labels.
        let again = site.label(&site.infer(edit, json!({*name: [point]}), None).await);
        assert!(again == clicked);
    }
    assert_eq!(changed, ORGANS.len());
    let back = site.label(&site.infer(edit, json!({}), None).await);
    assert!(back == plain, "a point that is taken away is forgotten");

    // One structure, as value 1.
    let grow = "pct-net-s-clicks-deepgrow";
    let point = site.inside(1);
    let params = json!({"label": "liver", "foreground": [point], "background": [[0, 0, 0]]});
    let liver = site.label(&site.infer(grow, params.clone(), None).await);
    assert_eq!(site.at(&liver, point), 1);
    assert!(liver.voxels.iter().all(|v| *v <= 1));
    let reply = site
        .server
        .form(
            "POST",
            &format!("/infer/{grow}?image=case&output=json"),
            &[("params", "", params.to_string().as_bytes())],
        )
        .await;
    assert_eq!(reply.json()["label_names"], json!({"liver": 1}));
    assert_eq!(reply.json()["model"], "pct-net-s-clicks");

    // OHIF names no label: it is the structure that the model alone sees nearest to the first point.
    let nearest = (1u16..).zip(ORGANS).find_map(|(value, name)| {
        let voxel = plain.voxels.iter().position(|found| *found == value)?;
        let [_, h, w] = plain.geometry.shape();
        Some((*name, [voxel % w, voxel / w % h, voxel / (w * h)]))
    });
    let (name, point) = nearest.expect("the model finds something");
    let params = json!({"foreground": [point], "background": [[0, 0, 0]]});
    let unnamed = site.label(&site.infer(grow, params.clone(), None).await);
    let mut named = params;
    named["label"] = json!(name);
    assert!(unnamed == site.label(&site.infer(grow, named, None).await));
    let point = site.inside(1);

    for (params, words) in [
        (
            json!({"label": "liver", "foreground": [], "background": []}),
            "no points",
        ),
        (
            json!({"label": "lung", "foreground": [point]}),
            "use one of: liver, spleen",
        ),
        (
            json!({"foreground": [[500, 2, 3]]}),
            "(500, 2, 3) lies outside of the image",
        ),
        (json!({"background": [point]}), "no points"),
        (
            json!({"label": "liver", "foreground": [[1, 2]]}),
            "[i, j, k]",
        ),
        (json!({"label": "liver", "foreground": "here"}), "[i, j, k]"),
        (
            json!({"label": "liver", "foreground": [[-1, 2, 3]]}),
            "outside of the image",
        ),
        (
            json!({"label": "liver", "foreground": [[500, 2, 3]]}),
            "(500, 2, 3) lies outside of the image",
        ),
    ] {
        site.refused(&site.infer(grow, params, None).await, words);
    }
    site.refused(
        &site
            .infer(edit, json!({"spleen": [[0, 0, 99]]}), None)
            .await,
        "(0, 0, 99) lies outside",
    );
    for unknown in ["pct-net-s-deepgrow", "none-deepedit", "GMM"] {
        assert_eq!(
            site.infer(unknown, json!({}), None).await.status,
            404,
            "{unknown}"
        );
    }
    let well = site.infer("pct-net-s-clicks", json!({}), None).await;
    assert!(site.label(&well) == plain, "the server goes on");
}

#[tokio::test]
async fn strokes_as_slicer_sends_them() {
    let site = Site::start();
    let geometry = site.scan.geometry;
    let shape @ [_, h, w] = geometry.shape();
    let liver = |v: usize| site.truth.voxels[v] == 1;
    // Every voxel deep in the liver, and a shell well outside of it.
    let depth = distance_mm(shape, geometry.spacing_mm(), |v| !liver(v));
    let away = distance_mm(shape, geometry.spacing_mm(), liver);
    let most = depth.iter().copied().fold(0.0, f32::max);
    let foreground = |v: usize| depth[v] > 0.7 * most;
    let background = |v: usize| (15.0..25.0).contains(&away[v]) && v.is_multiple_of(5);
    let painted = site.strokes(geometry, |v| {
        if foreground(v) {
            3
        } else {
            2 * u16::from(background(v))
        }
    });
    let info = json!([{"name": "liver", "id": 1}, {"name": "background_scribbles", "id": 2}, {"name": "foreground_scribbles", "id": 3}]);
    let params = |more: Value| {
        let mut params = json!({"roi": [], "label_info": info, "selected_label_name": "liver", "lamda": 1.0, "sigma": 0.1});
        more.as_object()
            .unwrap()
            .iter()
            .for_each(|(key, value)| params[key] = value.clone());
        params
    };
    for model in ["GMM%2BGraphCut", "Histogram%2BGraphCut"] {
        for prior in [true, false] {
            let reply = site
                .infer(model, params(json!({"model_prior": prior})), Some(&painted))
                .await;
            let found = site.label(&reply);
            for (v, value) in found.voxels.iter().enumerate() {
                assert!(
                    *value <= 1
                        && (*value == 1 || !foreground(v))
                        && (*value == 0 || !background(v))
                );
            }
            let dice = metrics::dice_per_class(
                &found.voxels,
                &site
                    .truth
                    .voxels
                    .iter()
                    .map(|v| u16::from(*v == 1))
                    .collect::<Vec<_>>(),
                2,
            )[1];
            let start = painted_dice(&site, &foreground);
            assert!(
                dice > Some(start),
                "{model} {prior}: {dice:?} from strokes of {start}"
            );
        }
        // A box: nothing outside of it is changed. Its ends come in any order.
        let current = site.strokes(geometry, |v| {
            if foreground(v) {
                3
            } else {
                u16::from(v % 7 == 0)
            }
        });
        let [i, j, k] = site.inside(1).map(|v| v as i64);
        let roi = [i + 6, i - 6, j - 6, j + 6, k + 3, k - 3];
        let reply = site
            .infer(model, params(json!({"roi": roi})), Some(&current))
            .await;
        let found = site.label(&reply);
        for (v, value) in found.voxels.iter().enumerate() {
            let [x, y, z] = [v % w, v / w % h, v / (w * h)].map(|v| v as i64);
            let inside = (x - i).abs() <= 6 && (y - j).abs() <= 6 && (z - k).abs() <= 3;
            if !inside {
                let before = u16::from(foreground(v) || v % 7 == 0);
                assert_eq!(*value, before, "({x}, {y}, {z})");
            }
        }
    }
    let model = "GMM%2BGraphCut";
    let nothing = site.strokes(geometry, |_| 0);
    let smaller =
        Geometry::new([2, 3, 4], geometry.origin_lps_mm(), geometry.steps_lps_mm()).unwrap();
    let smaller = site.strokes(smaller, |_| 3);
    let never = json!({"model_prior": false});
    for (params, strokes, words) in [
        (params(json!({})), None, "no file 'label'"),
        (
            params(never.clone()),
            Some(&nothing),
            "no foreground strokes",
        ),
        (
            params(json!({"roi": [900, 950, 0, 5, 0, 5]})),
            Some(&painted),
            "lies outside of the image",
        ),
        (
            params(json!({"roi": [0, 2, 0, 2, 0, 2], "model_prior": false})),
            Some(&painted),
            "no stroke lies inside",
        ),
        (
            params(json!({"roi": [1, 2, 3]})),
            Some(&painted),
            "six voxels",
        ),
        (params(json!({"lamda": -1})), Some(&painted), "lamda"),
        (
            params(json!({"label_info": [{"id": 2}]})),
            Some(&painted),
            "label_info",
        ),
        (params(json!({})), Some(&smaller), "the strokes are refused"),
        (
            params(json!({})),
            Some(&b"no label".to_vec()),
            "the strokes are refused",
        ),
    ] {
        let strokes = strokes.map(Vec::as_slice);
        site.refused(&site.infer(model, params, strokes).await, words);
    }
    let again = site.infer(model, params(json!({})), Some(&painted)).await;
    assert_eq!(again.status, 200, "the server goes on");
}

fn painted_dice(site: &Site, foreground: &impl Fn(usize) -> bool) -> f64 {
    let strokes: Vec<u16> = (0..site.truth.voxels.len())
        .map(|v| u16::from(foreground(v)))
        .collect();
    let truth: Vec<u16> = site
        .truth
        .voxels
        .iter()
        .map(|v| u16::from(*v == 1))
        .collect();
    metrics::dice_per_class(&strokes, &truth, 2)[1].unwrap_or(0.0)
}
