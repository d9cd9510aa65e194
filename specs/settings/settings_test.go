package settings

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What is written replaces the default; what is not stays.
func TestLoad(t *testing.T) {
	for _, test := range []struct {
		name, src string
		want      func(*Settings) bool
		fault     string
	}{
		{"empty", "", func(s *Settings) bool { return s.RunDir == "/run/nemoclaw" }, ""},
		{"one key", "run_dir: /x\n", func(s *Settings) bool { return s.RunDir == "/x" && s.LogDir == "/var/log/nemoclaw" }, ""},
		{"a list", "selectable: [web, db]\n", func(s *Settings) bool { return len(s.Selectable) == 2 }, ""},
		{"rotation", "audit: {max_size: 1048576, max_age: 24h, keep: 7}\n", func(s *Settings) bool { return s.Audit == Audit{1 << 20, 24 * time.Hour, 7} }, ""},
		{"a log of few lines", "audit: {max_size: 1000}\n", nil, "fewer than 65536"},
		{"a log of a moment", "audit: {max_age: 1s}\n", nil, "less than 1m"},
		{"kept of one file", "audit: {keep: 3}\n", nil, "needs max_size or max_age"},
		{"unknown key", "rundir: /x\n", nil, "field rundir not found"},
		{"relative", "log_dir: logs\n", nil, `log_dir: "logs" is not an absolute path`},
		{"unconfined by annotation", "selectable: [unconfined]\n", nil, `"unconfined" is not the name`},
		{"a path by annotation", "selectable: [../x]\n", nil, `"../x" is not the name`},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(file, []byte(test.src), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv(EnvFile, file)
			s, err := Load()
			switch {
			case test.fault != "":
				if err == nil || !strings.Contains(err.Error(), test.fault) {
					t.Errorf("error %v, want %q in it", err, test.fault)
				}
			case err != nil:
				t.Error(err)
			case !test.want(s):
				t.Errorf("got %+v", s)
			}
		})
	}
}

// A file that was asked for must be there; the default one need not.
func TestLoadMissing(t *testing.T) {
	t.Setenv(EnvFile, filepath.Join(t.TempDir(), "absent.yaml"))
	if _, err := Load(); err == nil {
		t.Error("a settings file that does not exist was accepted")
	}
}
