package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	oci "github.com/opencontainers/runtime-spec/specs-go"
)

// specFile is the bundle's own; it is read once and never written.
const specFile = "config.json"

// loadBundle reads the spec of the bundle dir and makes dir the working
// directory: relative paths in a spec are the bundle's, and libcontainer takes
// the working directory for it.
func loadBundle(dir string) (*oci.Spec, string, error) {
	if dir != "" {
		if err := os.Chdir(dir); err != nil {
			return nil, "", fmt.Errorf("cannot enter the bundle: %w", err)
		}
	}
	abs, err := os.Getwd()
	if err != nil {
		return nil, "", err
	}
	spec, err := LoadSpec(filepath.Join(abs, specFile))
	if err != nil {
		return nil, "", err
	}
	for i := range spec.Mounts {
		// A relative one is taken from "/", here as in libcontainer.
		spec.Mounts[i].Destination = filepath.Join("/", spec.Mounts[i].Destination)
	}
	return spec, abs, validProcess(spec.Process)
}

// LoadSpec reads a config.json.
func LoadSpec(file string) (*oci.Spec, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("JSON specification file %s not found", file) // runc's words; callers match them
		}
		return nil, err
	}
	spec := new(oci.Spec)
	if err := json.Unmarshal(b, spec); err != nil {
		return nil, fmt.Errorf("cannot understand %s: %w", file, err)
	}
	return spec, nil
}

func validProcess(p *oci.Process) error {
	switch {
	case p == nil:
		return errors.New("process must not be empty")
	case p.Cwd == "":
		return errors.New("process.cwd must not be empty")
	case !filepath.IsAbs(p.Cwd):
		return errors.New("process.cwd must be an absolute path")
	case len(p.Args) == 0:
		return errors.New("process.args must not be empty")
	}
	return nil
}
