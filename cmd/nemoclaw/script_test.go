package main

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "rewrite the golden parts of testdata")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"nemoclaw": main})
}

// Each file in testdata is a conversation with the command.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: *update,
		Setup: func(e *testscript.Env) error {
			config := e.WorkDir + "/config.yaml"
			e.Setenv("NEMOCLAW_CONFIG", config)
			return os.WriteFile(config, []byte("run_dir: "+e.WorkDir+"/run\nlog_dir: "+e.WorkDir+"/log\npolicy_dir: "+e.WorkDir+"/policies\npolicy: "+e.WorkDir+"/policy.yaml\n"), 0o600)
		},
	})
}

// Flags may stand behind arguments, as runc takes them; what belongs to
// another program is left alone.
func TestReorder(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{
		{"behind the container", "n kill web TERM --all", "n kill --all web TERM"},
		{"with a value", "n create web --bundle /b --pid-file=/p", "n create --bundle /b --pid-file=/p web"},
		{"global flags stay", "n --root /r --log l delete web --force", "n --root /r --log l delete --force web"},
		{"a boolean does not eat the container", "n run -d web", "n run -d web"},
		{"standard input", "n update --resources - web", "n update --resources - web"},
		{"exec is another program's", "n exec web ls -l", "n exec web ls -l"},
		{"ps too", "n ps web -ef", "n ps web -ef"},
		{"after two dashes", "n kill -- web --all", "n kill -- web --all"},
		{"no command", "n --version", "n --version"},
	} {
		if got := join(reorder(split(test.in))); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func split(s string) []string { return strings.Fields(s) }
func join(a []string) string  { return strings.Join(a, " ") }
