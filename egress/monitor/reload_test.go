package monitor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

const andMore = onlyExample + "    - host: www.example.org\n      port: 443\n"

// A saved policy is in force once the worker says so, however it was saved.
func TestReload(t *testing.T) {
	for _, c := range []struct {
		saved string
		save  func(s *sandbox)
	}{
		{"by a rename", func(s *sandbox) { s.save(andMore) }},
		{"in place", func(s *sandbox) { s.must(os.WriteFile(s.policy, []byte(andMore), 0o644)) }},
		{"in place, piece by piece", func(s *sandbox) {
			f, err := os.OpenFile(s.policy, os.O_WRONLY|os.O_TRUNC, 0)
			s.must(err)
			for line := range strings.Lines(andMore) {
				_, err := f.WriteString(line)
				s.must(err)
			}
			s.must(f.Close())
		}},
		{"after it was removed", func(s *sandbox) {
			s.must(os.Remove(s.policy))
			s.must(os.WriteFile(s.policy, []byte(andMore), 0o644))
		}},
		{"as a ConfigMap does", func(s *sandbox) {
			dir := filepath.Dir(s.policy)
			for _, v := range []string{"v1", "v2"} {
				s.must(os.Mkdir(filepath.Join(dir, v), 0o755))
			}
			s.must(os.WriteFile(filepath.Join(dir, "v1", "policy.yaml"), []byte(onlyExample), 0o644))
			s.must(os.WriteFile(filepath.Join(dir, "v2", "policy.yaml"), []byte(andMore), 0o644))
			s.must(os.Symlink("v1", filepath.Join(dir, "..data")))
			s.must(os.Symlink("..data/policy.yaml", s.policy+".new"))
			s.must(os.Rename(s.policy+".new", s.policy))
			s.must(os.Symlink("v2", filepath.Join(dir, "..new")))
			s.must(os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")))
		}},
		{"by a link to its directory", func(s *sandbox) {
			dir := filepath.Dir(s.policy)
			s.must(os.Rename(dir, dir+".1"))
			s.must(os.Symlink(dir+".1", dir))
			s.must(os.Mkdir(dir+".2", 0o755))
			s.must(os.WriteFile(filepath.Join(dir+".2", "policy.yaml"), []byte(andMore), 0o644))
			s.must(os.Symlink(dir+".2", dir+".new"))
			s.must(os.Rename(dir+".new", dir))
		}},
		{"and the operator asks", func(s *sandbox) {
			s.must(os.WriteFile(s.policy, []byte(andMore), 0o644))
			go func() { s.operator("POST", "/v1/reload", "", new(control.Reloaded)) }()
		}},
	} {
		t.Run(c.saved, func(t *testing.T) {
			s, w := up(t)
			c.save(s)
			if r := w.apply(); r.Generation != 2 || string(r.Policy) != andMore {
				t.Errorf("generation %d is %q", r.Generation, r.Policy)
			}
			s.awaitLine("policy generation 2: +1 -0 rules, cut 1")
		})
	}
}

// Law 8: a file that is no policy changes nothing, and is said aloud: once in
// the log for each content, and in the status for as long as it lasts.
func TestBadReload(t *testing.T) {
	for _, c := range []struct{ content, said string }{
		{"egress:\n  rules: [\n", "policy.yaml:"},
		{"egress:\n  rulez: []\n", `rulez`},
		{"version: 1\n", "egress"}, // half written: it must not bring the defaults back
		{"", "policy.yaml"},
	} {
		t.Run(c.said, func(t *testing.T) {
			s, w := up(t)
			s.save(c.content)
			s.awaitLine(`"kind":"fault"`, "policy generation 1 stays in force")
			var f control.Fault
			if code := s.operator("POST", "/v1/reload", "", &f); code != 422 || !strings.Contains(f.Error, c.said) {
				t.Errorf("reload answers %d %+v", code, f)
			}
			st := s.status()
			if st.Generation != 1 || !strings.Contains(st.PolicyFault, c.said) {
				t.Errorf("generation %d, fault %q", st.Generation, st.PolicyFault)
			}

			// The worker hears nothing of it; the next good file is generation 2.
			s.save(andMore)
			if r := w.apply(); r.Generation != 2 {
				t.Errorf("the worker was given generation %d", r.Generation)
			}
			s.awaitLine("policy generation 2: +1 -0 rules")
			if st := s.status(); st.PolicyFault != "" {
				t.Errorf("the fault %q outlives its reason", st.PolicyFault)
			}
			src, err := os.ReadFile(s.log)
			s.must(err)
			if n := strings.Count(string(src), `"kind":"fault"`); n != 1 {
				t.Errorf("the log tells of the fault %d times", n)
			}
		})
	}
}

// A policy file that is gone leaves its last content in force, with an alarm;
// when it comes back as it was, the alarm ends and nothing else happens.
func TestPolicyGone(t *testing.T) {
	s, _ := up(t)
	s.must(os.Remove(s.policy))
	s.awaitLine(`"kind":"fault"`, "is gone")
	if st := s.status(); !strings.Contains(st.PolicyFault, "is gone") {
		t.Errorf("fault %q", st.PolicyFault)
	}
	s.save(onlyExample)
	s.awaitLine("the policy file is again the one in force")
	if st := s.status(); st.PolicyFault != "" || st.Generation != 1 {
		t.Errorf("fault %q, generation %d", st.PolicyFault, st.Generation)
	}
}

// What only a new container can have is told, and egress is reloaded anyway.
func TestOtherLayersNeedANewContainer(t *testing.T) {
	s, w := up(t)
	s.save("seccomp:\n  deny: [mkdir]\n" + andMore)
	w.apply()
	s.awaitLine("seccomp changed: takes effect for new containers")
	if st := s.status(); len(st.Notes) == 0 || !strings.Contains(strings.Join(st.Notes, "\n"), "seccomp has changed") {
		t.Errorf("notes %q", st.Notes)
	}
}

func TestOtherLayers(t *testing.T) {
	base := "filesystem:\n  read_only: [/usr]\negress: {rules: []}\n"
	for _, c := range []struct{ src, want string }{
		{base, ""},
		{"# moved by a line\n\n" + base, ""},
		{base + "network: {ingress: none}\n", "network"},
		{strings.Replace(base, "/usr", "/lib", 1), "filesystem"},
		{base + "landlock: {compatibility: best_effort}\ncapabilities: {keep: []}\n", "landlock capabilities"},
	} {
		a, err := policy.Parse("policy.yaml", []byte(base))
		b, err2 := policy.Parse("policy.yaml", []byte(c.src))
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(otherLayers(a, b), " "); got != c.want {
			t.Errorf("%q changes %q, want %q", c.src, got, c.want)
		}
	}
}
