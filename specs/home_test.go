package specs

import (
	"slices"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"nemoclaw/specs/policy"
)

// A program's home, and the directories of a user that have variables of their
// own, are places that it may write; and no place becomes writable for that.
func TestHomes(t *testing.T) {
	for _, test := range []struct {
		name, filesystem, writable, env string
		want                            string
	}{
		{"root's", "", "/sandbox /tmp", "HOME=/root", "HOME=/sandbox"},
		{"none", "", "/sandbox /tmp", "", "HOME=/sandbox"},
		{"one that may be written", "", "/sandbox /home/agent", "HOME=/home/agent", "HOME=/home/agent"},
		{"one below", "", "/sandbox /home/agent", "HOME=/home/agent/x/", "HOME=/home/agent/x/"},
		{"a neighbour by name", "", "/sandbox /home/a", "HOME=/home/ab", "HOME=/sandbox"},
		{"without /sandbox", "", "/work /tmp", "HOME=/root", "HOME=/tmp"},
		{"the last resort", "", "/work", "HOME=/root", "HOME=/work"},
		{"nothing may be written", "", "", "HOME=/root", "HOME=/root"},
		{"read-only within", "read_write: [/work], read_only: [/work/keep]", "/work /tmp", "HOME=/work/keep/home", "HOME=/tmp"},
		{"writable within read-only", "read_write: [/work/keep/home], read_only: [/work/keep]", "/work/keep/home", "HOME=/work/keep/home", "HOME=/work/keep/home"},
		{"hidden within", "read_write: [/work], deny: [/work/home]", "/work", "HOME=/work/home", "HOME=/work"},
		{"/sandbox is hidden", "deny: [/sandbox]", "/sandbox /tmp", "HOME=/root", "HOME=/tmp"},
		{"directories of their own", "", "/sandbox", "HOME=/sandbox XDG_CACHE_HOME=/root/.cache XDG_CONFIG_HOME=/sandbox/cfg XDG_RUNTIME_DIR=/run/user/0",
			"XDG_CONFIG_HOME=/sandbox/cfg HOME=/sandbox"},
		{"two of them", "", "/sandbox", "HOME=/sandbox HOME=/root", "HOME=/sandbox"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, err := policy.Parse("p.yaml", []byte("filesystem: {"+test.filesystem+"}\n"))
			if err != nil {
				t.Fatal(err)
			}
			spec := &oci.Spec{Process: &oci.Process{Env: strings.Fields(test.env)}}
			edits := homes(spec.Process, p, strings.Fields(test.writable))
			Apply(spec, edits)
			if got := strings.Join(spec.Process.Env, " "); got != test.want {
				t.Errorf("the environment is %q, want %q", got, test.want)
			}
			if dropped := strings.Contains(test.env, "XDG") && len(spec.Process.Env) < 4; dropped != slices.ContainsFunc(Say(edits), func(s string) bool { return strings.Contains(s, "XDG") }) {
				t.Errorf("it says %q", Say(edits))
			}
		})
	}
}
