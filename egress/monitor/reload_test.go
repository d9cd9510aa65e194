package monitor

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
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
		{"by sed -i", func(s *sandbox) { s.run("sed", "-i", "$ a\\    - host: www.example.org\\n      port: 443", s.policy) }},
		{"by cp", func(s *sandbox) { s.run("cp", s.beside(andMore), s.policy) }},
		{"by mv", func(s *sandbox) { s.run("mv", s.beside(andMore), s.policy) }},
		{"by install, which removes it first", func(s *sandbox) { s.run("install", "-m", "644", s.beside(andMore), s.policy) }},
		{"by vim, which renames the old one", func(s *sandbox) {
			s.must(os.WriteFile(s.policy+".swp", nil, 0o644))
			s.must(os.Rename(s.policy, s.policy+"~"))
			s.must(os.WriteFile(s.policy, []byte(andMore), 0o644))
			s.must(os.Remove(s.policy + "~"))
			s.must(os.Remove(s.policy + ".swp"))
		}},
		{"by vim, which copies the old one", func(s *sandbox) {
			s.must(os.WriteFile(s.policy+"~", []byte(onlyExample), 0o644))
			s.must(os.WriteFile(s.policy, []byte(andMore), 0o644))
			s.must(os.Remove(s.policy + "~"))
		}},
		{"by vim itself", func(s *sandbox) { s.vim("set backupcopy=no backup") }},
		{"by vim itself, in place", func(s *sandbox) { s.vim("set backupcopy=yes") }},
		{"by emacs, with its lock and its backup", func(s *sandbox) {
			lock := filepath.Join(filepath.Dir(s.policy), ".#policy.yaml")
			s.must(os.Symlink("someone@somewhere.1:2", lock))
			s.must(os.Link(s.policy, s.policy+"~"))
			s.must(os.Remove(s.policy))
			s.must(os.WriteFile(s.policy, []byte(andMore), 0o644))
			s.must(os.Remove(lock))
		}},
		{"by a hard link", func(s *sandbox) {
			other := s.beside(andMore)
			s.must(os.Remove(s.policy))
			s.must(os.Link(other, s.policy))
		}},
		{"behind a symbolic link elsewhere", func(s *sandbox) {
			elsewhere := s.beside(onlyExample)
			s.must(os.Symlink(elsewhere, s.policy+".new"))
			s.must(os.Rename(s.policy+".new", s.policy))
			s.must(os.WriteFile(elsewhere, []byte(andMore), 0o644))
		}},
		{"and its owner is told by a signal", func(s *sandbox) {
			s.must(os.WriteFile(s.policy, []byte(andMore), 0o644))
			s.hangup <- syscall.SIGHUP
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

// run runs a program as a person would.
func (s *sandbox) run(name string, args ...string) {
	s.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		s.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// vim edits the policy where there is one; else nothing is left to be seen.
func (s *sandbox) vim(option string) {
	s.t.Helper()
	if _, err := exec.LookPath("vim"); err != nil {
		s.t.Skip("there is no vim here; the rows beside do what it does")
	}
	s.run("vim", "-N", "-u", "NONE", "-es", "-c", option, "-c", "%!cat "+s.beside(andMore), "-c", "wq", s.policy)
}

// beside writes a file in another directory of the same file system.
func (s *sandbox) beside(text string) string {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "other.yaml")
	s.must(os.WriteFile(file, []byte(text), 0o644))
	return file
}

// Whatever is written piece by piece, no half of it is ever in force: a rule that
// both texts have never goes away, however slowly an editor writes.
func TestHalfASave(t *testing.T) {
	s, w := up(t)
	f, err := os.OpenFile(s.policy, os.O_WRONLY|os.O_TRUNC, 0)
	s.must(err)
	for line := range strings.Lines("egress:\n  rules:\n") {
		_, err := f.WriteString(line)
		s.must(err)
	}
	// The file stays as it is for longer than it takes to believe in it.
	s.awaitLine(`"kind":"fault"`, "generation 1 stays in force")
	_, err = f.WriteString(strings.TrimPrefix(andMore, "egress:\n  rules:\n"))
	s.must(err)
	s.must(f.Close())
	if r := w.apply(); r.Generation != 2 || string(r.Policy) != andMore {
		t.Errorf("generation %d is %q", r.Generation, r.Policy)
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

// A policy that is not enforced is said to be so, where an auditor looks and
// where an operator does; so is what is hardly meant.
func TestNotEnforcedIsSaid(t *testing.T) {
	s, w := up(t)
	go w.apply()
	s.save("egress:\n  enforce: audit\n  rules:\n    - {host: a.example.org, port: 443}\n    - {host: a.example.org, port: 443}\n")
	s.awaitLine("policy generation 2", "egress.enforce is audit")
	notes := strings.Join(s.status().Notes, "\n")
	for _, want := range []string{"policy: egress.enforce is audit", "policy: " + s.policy + ":5:7: the rule a.example.org:443 is there twice"} {
		if !strings.Contains(notes, want) {
			t.Errorf("the notes %q lack %q", notes, want)
		}
	}
	fresh := newSandbox(t)
	fresh.save("egress: {enforce: audit, rules: []}\n")
	if a := fresh.attach(); a.Fault != "" {
		t.Fatal(a.Fault)
	}
	fresh.commit()
	fresh.awaitLine(`"kind":"note"`, "egress.enforce is audit")
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
