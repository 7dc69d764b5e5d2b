//! One of the two configurations: its settings, what its engines resolve to, and its data folder, which is ours meanwhile.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use catchment_store::registry::RegistryPlace;

use crate::engines::{self, Engine, Seam};
use crate::folder::DataFolder;
use crate::settings::{self, ProcessRole, Settings};

/// A configuration.
pub(super) struct Side {
    pub(super) settings: Settings,
    engines: Vec<(Seam, Engine)>,
    path: PathBuf,
    /// None where the other side's is the same.
    folder: Option<DataFolder>,
}

impl Side {
    /// `name` is `file:FOLDER`, a data folder with the embedded engines, or the path of a settings file. `other` is the side that
    /// was opened before.
    ///
    /// # Errors
    /// The settings are not sound, or a process uses the folder.
    pub(super) fn open(name: &str, other: Option<&Self>) -> anyhow::Result<Self> {
        let mut settings = match name.strip_prefix("file:") {
            Some(path) => {
                let path = path.strip_prefix("//").unwrap_or(path);
                Settings { data: PathBuf::from(path), ..Settings::default() }
            }
            None if Path::new(name).is_dir() => {
                bail!("that is a folder; for the embedded engines in it write file:{name}")
            }
            None => settings::load(Some(Path::new(name)), std::env::vars(), &Vec::new())?,
        };
        // It works on partitions, whatever the processes of this configuration do.
        settings.roles = ProcessRole::ALL.to_vec();
        let resolve = |seam| Ok((seam, engines::resolve(seam, &settings.engines, &settings.data)?));
        let engines = Seam::ALL.into_iter().map(resolve).collect::<anyhow::Result<Vec<_>>>()?;
        if other.is_none() && !settings.data.is_dir() {
            bail!("there is no data folder {}", settings.data.display());
        }
        std::fs::create_dir_all(&settings.data)
            .with_context(|| format!("the data folder {} cannot be made", settings.data.display()))?;
        let path = settings.data.canonicalize()?;
        let folder = match other {
            Some(other) if other.path == path => None,
            _ => Some(DataFolder::open(&path)?),
        };
        Ok(Self { settings, engines, path, folder })
    }

    /// What all seams resolve to.
    pub(super) fn engines(&self) -> &[(Seam, Engine)] {
        &self.engines
    }

    /// What a seam resolves to.
    pub(super) fn engine(&self, seam: Seam) -> &Engine {
        let found = self.engines.iter().find(|(other, _)| *other == seam);
        found.map_or(&Engine::Off, |(_, engine)| engine)
    }

    /// Where the data folder is.
    pub(super) fn folder_path(&self) -> &Path {
        &self.path
    }

    /// The data folder, which may be that of the other side.
    pub(super) fn folder<'a>(&'a self, other: &'a Self) -> &'a DataFolder {
        self.folder.as_ref().or(other.folder.as_ref()).expect("one of both sides has opened the folder")
    }

    /// The data folder of the side that was opened first.
    pub(super) fn own_folder(&self) -> anyhow::Result<&DataFolder> {
        self.folder.as_ref().context("the data folder is the other side's")
    }

    /// Where the registry is.
    pub(super) fn registry(&self) -> anyhow::Result<RegistryPlace> {
        match self.engine(Seam::Registry) {
            Engine::Embedded(path) => Ok(RegistryPlace::File(path.clone())),
            Engine::Postgres(url) => Ok(RegistryPlace::Postgres(url.clone())),
            other => bail!("{other} is no registry of this build"),
        }
    }

    /// Refuses a folder that has nothing, which would be moved without a word.
    pub(super) fn has_been_used(&self) -> anyhow::Result<()> {
        for seam in [Seam::Registry, Seam::History, Seam::Log] {
            if let Engine::Embedded(path) = self.engine(seam)
                && !path.exists()
            {
                bail!("the source has no {}: {} is not there", seam.name(), path.display());
            }
        }
        Ok(())
    }
}
