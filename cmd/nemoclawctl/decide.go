package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

var approveCommand = &cli.Command{
	Name:      "approve",
	Usage:     "let a sandbox reach a host and port until it ends",
	ArgsUsage: "[--permanent] ID HOST:PORT",
	Description: `The approval holds until the sandbox ends. With --permanent the policy file that
the sandbox was made with gets a rule more, for this sandbox and for every other
that the file serves. No approval beats a deny rule or makes a private address
reachable.`,
	Flags: []cli.Flag{jsonFlag, &cli.BoolFlag{Name: "permanent", Usage: "add a rule to the policy file"}},
	Action: func(c *cli.Context) error {
		s, host, port, err := target(c)
		if err != nil {
			return err
		}
		if c.Bool("permanent") {
			return approvePermanently(c, s, host, port)
		}
		return s.decide(c, control.Decision{Verb: "approve", Host: host, Port: port}, "is allowed until the sandbox ends")
	},
}

var denyCommand = &cli.Command{
	Name:      "deny",
	Usage:     "refuse a sandbox a host and port, and do not ask again",
	ArgsUsage: "ID HOST:PORT",
	Flags:     []cli.Flag{jsonFlag},
	Action: func(c *cli.Context) error {
		s, host, port, err := target(c)
		if err != nil {
			return err
		}
		return s.decide(c, control.Decision{Verb: "deny", Host: host, Port: port}, "is denied until the sandbox ends")
	},
}

var reloadCommand = &cli.Command{
	Name:      "reload",
	Usage:     "read a sandbox's policy file again now",
	ArgsUsage: "ID",
	Flags:     []cli.Flag{jsonFlag},
	Action: func(c *cli.Context) error {
		if err := wants(c, 1, 1); err != nil {
			return err
		}
		s, err := find(c.Args().First())
		if err != nil {
			return err
		}
		var r control.Reloaded
		if err := s.call("POST", "/v1/reload", nil, &r); err != nil {
			return err
		}
		if c.Bool("json") {
			return printJSON(c.App.Writer, r)
		}
		what := "is in force unchanged"
		if r.Changed {
			what = fmt.Sprintf("is in force; %d connections were cut", r.Cut)
		}
		_, err = fmt.Fprintf(c.App.Writer, "%s: policy generation %d %s\n", short(s.ID), r.Generation, what)
		return err
	},
}

// target reads ID HOST:PORT.
func target(c *cli.Context) (s *sandbox, host string, port uint16, err error) {
	if err := wants(c, 2, 2); err != nil {
		return nil, "", 0, err
	}
	host, port, err = hostPort(c.Args().Get(1))
	if err != nil {
		return nil, "", 0, usageError{err}
	}
	s, err = find(c.Args().First())
	return s, host, port, err
}

func hostPort(arg string) (string, uint16, error) {
	host, p, err := net.SplitHostPort(arg)
	if err != nil || host == "" {
		return "", 0, hinted{fmt.Errorf("cannot understand %q", arg), "write HOST:PORT, such as api.example.org:443 or [2001:db8::1]:443"}
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil || port == 0 {
		return "", 0, fmt.Errorf("cannot understand %q: a port is a number from 1 to 65535", arg)
	}
	return host, uint16(port), nil
}

// decide has the gateway put a decision into force, and says so.
func (s *sandbox) decide(c *cli.Context, d control.Decision, told string) error {
	var got control.Decided
	if err := s.call("POST", "/v1/decisions", d, &got); err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, got)
	}
	if got.Warning != "" {
		_, err := fmt.Fprintf(c.App.Writer, "%s: %s is recorded as decided\nwarning: %s\n", short(s.ID), cell(join(d.Host, d.Port)), printable(got.Warning))
		return err
	}
	_, err := fmt.Fprintf(c.App.Writer, "%s: %s %s\n", short(s.ID), cell(join(d.Host, d.Port)), told)
	return err
}

func join(host string, port uint16) string { return net.JoinHostPort(host, strconv.Itoa(int(port))) }

// change is what a permanent approval did.
type change struct {
	File    string   `json:"file"`
	Created bool     `json:"created"`           // the built-in policy was written out first
	Already bool     `json:"already"`           // the file allowed it before
	Others  []string `json:"others"`            // sandboxes that the file serves too
	Session bool     `json:"session"`           // this sandbox got a decision for its session instead
	Warning string   `json:"warning,omitempty"` // of that decision
}

// approvePermanently adds a rule to the policy file that s was made with.
func approvePermanently(c *cli.Context, s *sandbox, host string, port uint16) error {
	if s.PolicyFile == "" && s.PolicyName == "unconfined" {
		return errors.New("cannot approve: the sandbox is unconfined")
	}
	done := change{File: s.PolicyFile}
	builtIn := s.PolicyFile == ""
	if builtIn {
		done.File = s.settings.Policy
		created, err := writeDefault(done.File)
		if err != nil {
			return err
		}
		done.Created = created
	}
	err := addRule(done.File, host, port, "approved with nemoclawctl on "+time.Now().Format(time.DateOnly))
	if done.Already = errors.Is(err, policy.ErrAlready); err != nil && !done.Already {
		return err
	}
	if builtIn {
		err = s.approveSession(host, port, &done)
	} else {
		err = s.reloadAfter(&done)
	}
	if err != nil {
		return err
	}
	if err := s.call("POST", "/v1/decisions", control.Decision{Verb: "permanent", Host: host, Port: port, File: done.File}, nil); err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, done)
	}
	return printChange(c.App.Writer, s, join(host, port), done)
}

// approveSession lets a sandbox that keeps the built-in policy have the
// approval for as long as it lives.
func (s *sandbox) approveSession(host string, port uint16, done *change) error {
	var d control.Decided
	err := s.call("POST", "/v1/decisions", control.Decision{Verb: "approve", Host: host, Port: port}, &d)
	done.Session, done.Warning = true, d.Warning
	return err
}

// reloadAfter has s obey the changed file now, and names whom else it serves.
func (s *sandbox) reloadAfter(done *change) error {
	done.Others = []string{}
	others, err := all()
	if err != nil {
		return err
	}
	for _, o := range others {
		if o.dir != s.dir && o.PolicyFile == s.PolicyFile && o.alive() {
			done.Others = append(done.Others, o.ID)
		}
	}
	return s.call("POST", "/v1/reload", nil, nil)
}

func printChange(w io.Writer, s *sandbox, what string, done change) error {
	what = cell(what)
	if done.Created {
		fmt.Fprintf(w, "%s did not exist: the built-in policy was written there\n", done.File)
	}
	if done.Already {
		fmt.Fprintf(w, "%s allows %s already\n", done.File, what)
	} else {
		fmt.Fprintf(w, "%s: a rule for %s was added\n", done.File, what)
	}
	if done.Session {
		fmt.Fprintf(w, "%s: %s is allowed until the sandbox ends; sandboxes that run keep the built-in policy, new ones obey the file\n", short(s.ID), what)
	}
	if done.Warning != "" {
		fmt.Fprintf(w, "warning: %s\n", printable(done.Warning))
	}
	if len(done.Others) > 0 {
		for i := range done.Others {
			done.Others[i] = short(done.Others[i])
		}
		fmt.Fprintf(w, "the file serves these sandboxes too: %s\n", strings.Join(done.Others, ", "))
	}
	return nil
}

// writeDefault writes the built-in policy out, unless there is a file.
func writeDefault(file string) (created bool, err error) {
	if _, err := os.Stat(file); err == nil {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return false, fmt.Errorf("cannot write the built-in policy: %w", err)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return false, fmt.Errorf("cannot write the built-in policy: %w", err)
	}
	_, err = f.Write(policy.DefaultSource())
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(file)
		return false, fmt.Errorf("cannot write the built-in policy: %w", err)
	}
	return true, nil
}
