// Package settings reads config.yaml: where nemoclaw keeps its files and which
// policies may be chosen. It applies nothing and makes no directory.
package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// File is where the settings are read from unless EnvFile names another.
const File = "/etc/nemoclaw/config.yaml"

// EnvFile is the environment variable that names another file.
const EnvFile = "NEMOCLAW_CONFIG"

// Settings are the host's, not a container's.
type Settings struct {
	RunDir    string `yaml:"run_dir"`    // state directories
	LogDir    string `yaml:"log_dir"`    // audit logs, ID*.jsonl
	PolicyDir string `yaml:"policy_dir"` // NAME.yaml: policies chosen by name
	Policy    string `yaml:"policy"`     // the policy of a container that chooses none

	// Selectable are the policy names that an annotation may choose. Pod
	// annotations belong to tenants, so there are none unless written here.
	Selectable []string `yaml:"selectable"`

	// Audit says when an audit log goes on in another file.
	Audit Audit `yaml:"audit"`

	// AllowUnconfined makes the built-in policy "unconfined", which turns all
	// layers off, selectable by --policy. It is for conformance tests.
	AllowUnconfined bool `yaml:"allow_unconfined"`
}

// Audit says when a log is rotated; a log of which nothing is said grows for ever.
type Audit struct {
	MaxSize int64         `yaml:"max_size"` // bytes in one file, 64 KiB or more; 0: any
	MaxAge  time.Duration `yaml:"max_age"`  // of a file, such as 24h, 1m or more; 0: any
	Keep    int           `yaml:"keep"`     // older files that are kept; 0: all
}

// fault says what of it cannot be meant.
func (a Audit) fault() string {
	switch {
	case a.MaxSize != 0 && a.MaxSize < 64<<10:
		return fmt.Sprintf("audit.max_size: %d is fewer than 65536 bytes", a.MaxSize)
	case a.MaxAge != 0 && a.MaxAge < time.Minute:
		return fmt.Sprintf("audit.max_age: %v is less than 1m", a.MaxAge)
	case a.Keep < 0:
		return fmt.Sprintf("audit.keep: %d is no number of files", a.Keep)
	case a.Keep > 0 && a.MaxSize == 0 && a.MaxAge == 0:
		return "audit.keep needs max_size or max_age"
	}
	return ""
}

// Default returns the settings of a host without a config.yaml.
func Default() *Settings {
	return &Settings{
		RunDir:    "/run/nemoclaw",
		LogDir:    "/var/log/nemoclaw",
		PolicyDir: "/etc/nemoclaw/policies",
		Policy:    "/etc/nemoclaw/policy.yaml",
	}
}

// Load reads the settings file. A missing default file means Default; a
// missing file that EnvFile names is an error, and so is an unknown key.
func Load() (*Settings, error) {
	file, named := os.LookupEnv(EnvFile)
	if !named {
		file = File
	}
	src, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return Default(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the settings: %v", err)
	}
	return parse(file, src)
}

func parse(file string, src []byte) (*Settings, error) {
	s := Default()
	dec := yaml.NewDecoder(bytes.NewReader(src))
	dec.KnownFields(true)
	if err := dec.Decode(s); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("cannot read the settings: %s: %v", file, err)
	}
	for key, path := range map[string]string{"run_dir": s.RunDir, "log_dir": s.LogDir, "policy_dir": s.PolicyDir, "policy": s.Policy} {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("cannot read the settings: %s: %s: %q is not an absolute path", file, key, path)
		}
	}
	if fault := s.Audit.fault(); fault != "" {
		return nil, fmt.Errorf("cannot read the settings: %s: %s", file, fault)
	}
	for _, name := range s.Selectable {
		if name == "unconfined" || !IsName(name) {
			return nil, fmt.Errorf("cannot read the settings: %s: selectable: %q is not the name of a policy that an annotation may choose", file, name)
		}
	}
	return s, nil
}

// IsName reports whether s can be a policy's name: letters, digits, "-", "_"
// and ".", beginning with a letter or digit, so never a path.
func IsName(s string) bool {
	if s == "" || len(s) > 64 || strings.ContainsAny(s[:1], "-_.") {
		return false
	}
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
		default:
			return false
		}
	}
	return true
}

// NamedPolicy returns the file of the policy called name.
func (s *Settings) NamedPolicy(name string) string {
	return filepath.Join(s.PolicyDir, name+".yaml")
}
