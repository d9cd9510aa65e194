package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

var approveCommand = &cli.Command{
	Name:      "approve",
	Usage:     "let a sandbox reach a host and port",
	ArgsUsage: "[--once | --uses N | --for TIME | --permanent] ID WHAT...  |  --all ID",
	Description: `WHAT is HOST:PORT, or the number or the request that pending shows.

The approval holds until the sandbox ends, or for as long or as often as a flag
says. --once is for the request that pending shows: if that connection still
waits it is let through and no other, else the next one is. A use is spent when a
connection is let through, whatever becomes of it. With --permanent the policy
file that the sandbox was made with gets a rule more, for this sandbox and for
every other that the file serves. An approval is for every program of the sandbox,
whatever "binaries" say. None beats a deny rule or makes a private address
reachable.`,
	Flags: []cli.Flag{jsonFlag,
		&cli.BoolFlag{Name: "once", Usage: "allow one connection"},
		&cli.IntFlag{Name: "uses", Usage: "allow `N` connections"},
		&cli.DurationFlag{Name: "for", Usage: "allow it for a `TIME`, such as 10m; what is open then is cut"},
		&cli.BoolFlag{Name: "permanent", Usage: "add a rule to the policy file"},
		&cli.BoolFlag{Name: "all", Usage: "everything that is pending, after it was shown"},
		yesFlag,
	},
	Action: func(c *cli.Context) error {
		if err := oneOf(c, "once", "uses", "for", "permanent"); err != nil {
			return err
		}
		d := control.Decision{Verb: "approve", Once: c.Bool("once"), Uses: c.Int("uses"), For: c.Duration("for")}
		if c.IsSet("uses") && d.Uses < 1 || c.IsSet("for") && d.For < time.Second {
			return usageError{errors.New("cannot approve for nothing: --uses begins at 1, --for at 1s")}
		}
		s, targets, err := targets(c)
		if err != nil {
			return err
		}
		if c.Bool("permanent") {
			return decidePermanently(c, s, d.Verb, targets)
		}
		return s.decideAll(c, d, targets)
	},
}

var denyCommand = &cli.Command{
	Name:      "deny",
	Usage:     "refuse a sandbox a host and port, and do not ask again",
	ArgsUsage: "[--permanent] ID WHAT...  |  --all ID",
	Description: `WHAT is HOST:PORT, or the number or the request that pending shows.

It holds until the sandbox ends; approve takes it back, and so does revoke. With
--permanent the policy file that the sandbox was made with gets a rule more below
egress.deny, for this sandbox and for every other that the file serves; no approval
beats it.`,
	Flags: []cli.Flag{jsonFlag,
		&cli.BoolFlag{Name: "permanent", Usage: "add a deny rule to the policy file"},
		&cli.BoolFlag{Name: "all", Usage: "everything that is pending, after it was shown"},
		yesFlag,
	},
	Action: func(c *cli.Context) error {
		s, targets, err := targets(c)
		if err != nil {
			return err
		}
		if c.Bool("permanent") {
			return decidePermanently(c, s, "deny", targets)
		}
		return s.decideAll(c, control.Decision{Verb: "deny"}, targets)
	},
}

var yesFlag = &cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask before --all"}

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

// oneOf refuses flags that contradict each other.
func oneOf(c *cli.Context, names ...string) error {
	var set []string
	for _, name := range names {
		if c.IsSet(name) {
			set = append(set, "--"+name)
		}
	}
	if len(set) > 1 {
		return usageError{fmt.Errorf("cannot %s with %s together: choose one", c.Command.Name, strings.Join(set, " and "))}
	}
	return nil
}

// target is a host and port to be decided upon.
type target struct {
	host    string
	port    uint16
	request string // the latest for it that is pending, or the one that was named
	process *control.Process
}

// targets reads ID WHAT..., or --all ID.
func targets(c *cli.Context) (*sandbox, []target, error) {
	all := c.Bool("all")
	least, most := 2, 1000
	if all {
		least, most = 1, 1
	}
	if err := wants(c, least, most); err != nil {
		return nil, nil, err
	}
	words := c.Args().Tail()
	for _, w := range words {
		if err := isTarget(w); err != nil {
			return nil, nil, usageError{err}
		}
	}
	s, err := find(c.Args().First())
	if err != nil {
		return nil, nil, err
	}
	var pending []control.Pending
	if err := s.call("GET", "/v1/pending", nil, &pending); err != nil {
		return nil, nil, err
	}
	if all {
		return s, of(pending), confirm(c, s, pending)
	}
	var list []target
	for _, w := range words {
		t, err := s.target(w, pending)
		if err != nil {
			return nil, nil, err
		}
		list = append(list, t)
	}
	return s, list, nil
}

// isTarget tells whether a word could be HOST:PORT, a number or a request.
func isTarget(word string) error {
	if strings.Contains(word, ":") || strings.Contains(word, ".") {
		_, _, err := hostPort(word)
		return err
	}
	if word == "" || strings.Trim(word, "0123456789abcdefghijklmnopqrstuvwxyz-") != "" {
		return fmt.Errorf("cannot understand %q: write HOST:PORT, or a number or a request that pending shows", word)
	}
	return nil
}

func of(pending []control.Pending) []target {
	list := make([]target, len(pending))
	for i, p := range pending {
		list[i] = target{p.Host, p.Port, p.Request, p.Process}
	}
	return list
}

// target finds what a word means among what is pending.
func (s *sandbox) target(word string, pending []control.Pending) (target, error) {
	if host, port, err := hostPort(word); err == nil {
		t := target{host: host, port: port}
		if i := slices.IndexFunc(pending, func(p control.Pending) bool { return p.Port == port && strings.EqualFold(p.Host, host) }); i >= 0 {
			t.request, t.process = pending[i].Request, pending[i].Process
		}
		return t, nil
	}
	i := slices.IndexFunc(pending, func(p control.Pending) bool { return strconv.FormatUint(p.N, 10) == word || p.Request == word })
	if i < 0 {
		return target{}, hinted{fmt.Errorf("cannot find %q among what is pending", word), "nemoclawctl pending " + short(s.ID) + " shows it; another request for the same host may have come since"}
	}
	return of(pending[i : i+1])[0], nil
}

// confirm shows what --all is and asks.
func confirm(c *cli.Context, s *sandbox, pending []control.Pending) error {
	if c.Bool("yes") || len(pending) == 0 {
		return nil
	}
	rows := [][]string{}
	for _, p := range pending {
		rows = append(rows, []string{join(p.Host, p.Port), who(p.Process)})
	}
	if err := table(c.App.ErrWriter, rows); err != nil {
		return err
	}
	fmt.Fprintf(c.App.ErrWriter, "%s these %d for %s? [y/N] ", c.Command.Name, len(pending), short(s.ID))
	answer, _ := bufio.NewReader(c.App.Reader).ReadString('\n')
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return hinted{fmt.Errorf("cannot %s all: nobody said yes", c.Command.Name), "--yes says it beforehand"}
	}
	return nil
}

// targetForm is how a host and port are written.
const targetForm = "write HOST:PORT, such as api.example.org:443 or [2001:db8::1]:443"

func hostPort(arg string) (string, uint16, error) {
	host, p, err := net.SplitHostPort(arg)
	if err != nil || host == "" {
		return "", 0, hinted{fmt.Errorf("cannot understand %q", arg), targetForm}
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil || port == 0 {
		return "", 0, hinted{fmt.Errorf("cannot understand %q: a port is a number from 1 to 65535", arg), targetForm}
	}
	return host, uint16(port), nil
}

// decideAll has the gateway put decisions into force, one after the other, and
// says so.
func (s *sandbox) decideAll(c *cli.Context, d control.Decision, targets []target) error {
	done := make([]control.Decided, len(targets))
	for i, t := range targets {
		d.Host, d.Port, d.Request = t.host, t.port, ""
		if d.Once {
			d.Request = t.request
		}
		if err := s.call("POST", "/v1/decisions", d, &done[i]); err != nil {
			return err
		}
		if !c.Bool("json") {
			if err := s.printDecided(c.App.Writer, t, &done[i]); err != nil {
				return err
			}
		}
	}
	switch {
	case !c.Bool("json"):
		return nil
	case len(done) == 1:
		return printJSON(c.App.Writer, done[0])
	}
	return printJSON(c.App.Writer, done)
}

func (s *sandbox) printDecided(w io.Writer, t target, done *control.Decided) error {
	what := cell(join(t.host, t.port))
	if done.Warning != "" {
		_, err := fmt.Fprintf(w, "%s: %s is recorded as decided\nwarning: %s\n", short(s.ID), what, printable(done.Warning))
		return err
	}
	g := done.Grant
	told := "is denied " + bounds(g)
	if g.Allow {
		told = "is allowed " + bounds(g)
	}
	if g.Request != "" {
		told += cell(fmt.Sprintf(", for request %s of %s", g.Request, who(t.process)))
	}
	_, err := fmt.Fprintf(w, "%s: %s %s\n", short(s.ID), what, told)
	return err
}

// bounds tells how long or how often a grant holds.
func bounds(g control.Grant) string {
	switch {
	case g.Spent():
		return "no more: it is used up"
	case g.Counted && g.Uses == 1:
		return "once"
	case g.Counted:
		return fmt.Sprintf("%d times", g.Uses)
	case g.Until != 0:
		return "for " + time.Duration(max(0, g.Until-control.Now())).Round(time.Second).String()
	}
	return "until the sandbox ends"
}

func join(host string, port uint16) string { return net.JoinHostPort(host, strconv.Itoa(int(port))) }

// change is what a permanent decision did.
type change struct {
	Verb    string   `json:"verb"` // approve or deny
	File    string   `json:"file"`
	Created bool     `json:"created"`           // the built-in policy was written out first
	Already bool     `json:"already"`           // the file said so before
	Others  []string `json:"others"`            // sandboxes that the file serves too
	Session bool     `json:"session"`           // this sandbox got a decision for its session instead
	Warning string   `json:"warning,omitempty"` // of that decision
}

// decidePermanently adds rules to the policy file that s was made with.
func decidePermanently(c *cli.Context, s *sandbox, verb string, targets []target) error {
	for _, t := range targets {
		if err := changePolicy(c, s, verb, t.host, t.port); err != nil {
			return err
		}
	}
	return nil
}

func changePolicy(c *cli.Context, s *sandbox, verb, host string, port uint16) error {
	if s.PolicyFile == "" && s.PolicyName == "unconfined" {
		return fmt.Errorf("cannot %s: the sandbox is unconfined", verb)
	}
	done := change{Verb: verb, File: s.PolicyFile}
	builtIn := s.PolicyFile == ""
	if builtIn {
		done.File = s.settings.Policy
		created, err := writeDefault(done.File)
		if err != nil {
			return err
		}
		done.Created = created
	}
	said := map[string]string{"approve": "approved", "deny": "denied"}[verb]
	err := addRule(done.File, verb, host, port, said+" with nemoclawctl on "+time.Now().Format(time.DateOnly))
	if done.Already = errors.Is(err, policy.ErrAlready); err != nil && !done.Already {
		return err
	}
	if builtIn {
		err = s.decideSession(host, port, &done)
	} else {
		err = s.reloadAfter(&done)
	}
	if err != nil {
		return err
	}
	record := map[string]string{"approve": control.Permanent, "deny": control.PermanentDeny}[verb]
	if err := s.call("POST", "/v1/decisions", control.Decision{Verb: record, Host: host, Port: port, File: done.File}, nil); err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, done)
	}
	return printChange(c.App.Writer, s, join(host, port), done)
}

// decideSession lets a sandbox that keeps the built-in policy have the decision
// for as long as it lives.
func (s *sandbox) decideSession(host string, port uint16, done *change) error {
	var d control.Decided
	err := s.call("POST", "/v1/decisions", control.Decision{Verb: done.Verb, Host: host, Port: port}, &d)
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
	says, rule, is := "allows", "a rule", "allowed"
	if done.Verb == "deny" {
		says, rule, is = "denies", "a deny rule", "denied"
	}
	if done.Created {
		fmt.Fprintf(w, "%s did not exist: the built-in policy was written there\n", done.File)
	}
	if done.Already {
		fmt.Fprintf(w, "%s %s %s already\n", done.File, says, what)
	} else {
		fmt.Fprintf(w, "%s: %s for %s was added\n", done.File, rule, what)
	}
	if done.Session {
		fmt.Fprintf(w, "%s: %s is %s until the sandbox ends; sandboxes that run keep the built-in policy, new ones obey the file\n", short(s.ID), what, is)
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
