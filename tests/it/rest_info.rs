//! `/info/`: exact keys, order and types.

use crate::support::TestServer;

#[tokio::test]
async fn info_of_a_new_project() {
    let server = TestServer::start().await;
    let reply = server.get("/info/").await;
    assert_eq!(reply.header("content-type"), Some("application/json"));
    insta::assert_json_snapshot!(server.scrub(reply.json()), @r#"
    {
      "name": "Fewlabel (0.1.0)",
      "description": "Segment CT with few labels: a native server that speaks the MONAI Label protocol, serves and fine-tunes PCT-Net",
      "version": "0.1.0",
      "labels": [
        "spleen",
        "liver"
      ],
      "models": {
        "pct-net-s": {
          "type": "segmentation",
          "labels": {
            "spleen": 1,
            "liver": 2
          },
          "dimension": 3,
          "description": "PCT-Net for CT, not trained yet: its proposals mean nothing until it was trained on some labels",
          "config": {
            "device": [
              "cpu"
            ],
            "largest_cc": false,
            "version": [
              "live (1)"
            ]
          }
        },
        "Histogram+GraphCut": {
          "type": "scribbles",
          "labels": {
            "spleen": 1,
            "liver": 2
          },
          "dimension": 3,
          "description": "Strokes refine a label: histograms of intensity and a graph cut",
          "config": {
            "lamda": 1.0,
            "sigma": 0.1,
            "num_bins": 64,
            "model_prior": true
          }
        },
        "GMM+GraphCut": {
          "type": "scribbles",
          "labels": {
            "spleen": 1,
            "liver": 2
          },
          "dimension": 3,
          "description": "Strokes refine a label: Gaussian mixtures of intensity and a graph cut",
          "config": {
            "lamda": 1.0,
            "sigma": 0.1,
            "num_mixtures": 20,
            "model_prior": true
          }
        }
      },
      "trainers": {
        "pct-net-s": {
          "description": "Fine-tunes PCT-Net on the submitted labels; a new version goes live only when it is not worse",
          "config": {
            "name": "train_01",
            "pretrained": true,
            "device": [
              "cpu"
            ],
            "max_epochs": 50,
            "early_stop_patience": -1,
            "val_split": 0.2
          }
        }
      },
      "strategies": {
        "auto": {
          "description": "The most typical image at first, the most uncertain one, structures in turn, after the first round"
        },
        "random": {
          "description": "A random image without label; those that were offered long ago or never come first"
        },
        "first": {
          "description": "The first image without label, by id"
        },
        "last": {
          "description": "The last image without label, by id"
        },
        "foreground_random": {
          "description": "A random image, likelier with more of a random structure in the prediction"
        },
        "clasp": {
          "description": "The most uncertain image, structures in turn (ClaSP)"
        },
        "entropy": {
          "description": "The image with the most uncertain voxels"
        },
        "power_entropy": {
          "description": "As entropy, with noise for variety"
        },
        "margin": {
          "description": "The image whose voxels are nearest to a tie of two structures"
        },
        "bald": {
          "description": "The image on which several answers of the model disagree most"
        },
        "power_bald": {
          "description": "As bald, with noise for variety"
        },
        "stochastic_batch": {
          "description": "From the most uncertain of several random groups of images"
        },
        "k_center": {
          "description": "The image that is least like any labelled one"
        },
        "typicality": {
          "description": "The most typical image of the largest group without a label"
        },
        "cold_start": {
          "description": "A structure that is in no label yet where one is predicted, else the most typical image"
        }
      },
      "scoring": {
        "dice": {
          "description": "Dice per label of the accepted label against the proposal of the model"
        },
        "sum": {
          "description": "Sum of the values of every label, and its slices that are not empty"
        },
        "epistemic": {
          "description": "How sure the model is of every image, for the strategies that go by it"
        }
      },
      "train_stats": {
        "pct-net-s": {}
      },
      "datastore": {
        "total": 3,
        "completed": 0,
        "label_tags": {}
      }
    }
    "#);
}

#[tokio::test]
async fn train_stats_follow_the_last_training() {
    let server = TestServer::start().await;
    let _worker = server.worker();
    server
        .post_json("/train/pct-net-s", r#"{"name":"endless","max_epochs":4}"#)
        .await;
    loop {
        let stats = server.get("/info/").await.json()["train_stats"]["pct-net-s"].clone();
        if stats["epoch"] == 1 {
            insta::assert_json_snapshot!(stats, @r#"
            {
              "start_ts": 1700000000,
              "epoch": 1,
              "total_epochs": 4,
              "best_metric": 0.5,
              "train": {
                "metrics": {
                  "loss": 0.25
                }
              },
              "current_time": "0:00:00"
            }
            "#);
            break;
        }
        // Before the first epoch ended, Slicer still has numbers to calculate with.
        assert!(
            stats["best_metric"].is_f64() && stats["total_epochs"] == 4,
            "{stats}"
        );
    }
    server.delete("/train/").await;
    let stats = server.get("/info/").await.json()["train_stats"]["pct-net-s"].clone();
    assert!(stats["total_time"].is_string(), "{stats}");
}
