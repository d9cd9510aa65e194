package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"nemoclaw/egress/control"
)

// The scripts ask the program itself what may come next. A colon ends a word for
// bash, and HOST:PORT has one: what is written so far is read from the line. The
// words are compared and never expanded, as compgen -W would: what is pending was
// named by strangers.
const (
	bashCompletion = `_nemoclawctl() {
  local line=${COMP_LINE:0:COMP_POINT} word
  local cur=${line##*[[:space:]]}
  local colon=${cur%"${cur##*:}"}
  local -a before
  read -ra before <<<"${line%"$cur"}"
  COMPREPLY=()
  while IFS= read -r word; do
    [[ $word == "$cur"* ]] && COMPREPLY+=("${word#"$colon"}")
  done < <("${before[@]}" --generate-bash-completion 2>/dev/null)
}
complete -o nosort -F _nemoclawctl nemoclawctl
`
	zshCompletion = `#compdef nemoclawctl
_nemoclawctl() {
  local -a words_
  words_=("${(@f)$(${words[1,CURRENT-1]} --generate-bash-completion 2>/dev/null)}")
  compadd -a words_
}
compdef _nemoclawctl nemoclawctl
`
	// What follows cli's own script for fish, which knows commands and flags.
	fishCompletion = `
complete -c nemoclawctl -n 'test (count (commandline -opc)) -ge 2' -f -a '((commandline -opc) --generate-bash-completion 2>/dev/null)'
`
)

var completionCommand = &cli.Command{
	Name:      "completion",
	Usage:     "print a completion script for a shell",
	ArgsUsage: "bash|zsh|fish",
	Action: func(c *cli.Context) error {
		if err := wants(c, 1, 1); err != nil {
			return err
		}
		var script string
		var err error
		switch shell := c.Args().First(); shell {
		case "bash":
			script = bashCompletion
		case "zsh":
			script = zshCompletion
		case "fish":
			script, err = c.App.ToFishCompletion()
			script += fishCompletion
		default:
			err = usageError{fmt.Errorf("cannot complete for %q: bash, zsh and fish are known", shell)}
		}
		if err == nil {
			_, err = fmt.Fprint(c.App.Writer, script)
		}
		return err
	},
}

// completeIDs offers the sandboxes of this host for a first argument.
func completeIDs(c *cli.Context) { completeThen(c, nil) }

// completeThen offers the sandboxes for a first argument, and for those behind it
// what then returns of the one that was named.
func completeThen(c *cli.Context, then func(*sandbox) []string) {
	var words []string
	for _, w := range c.Args().Slice() {
		if !strings.HasPrefix(w, "-") {
			words = append(words, w)
		}
	}
	switch {
	case len(words) == 0:
		sandboxes, err := all()
		if err != nil {
			return
		}
		for _, s := range sandboxes {
			fmt.Fprintln(c.App.Writer, short(s.ID))
		}
	case then != nil:
		s, err := find(words[0])
		if err != nil {
			return
		}
		for _, w := range then(s) {
			if !slices.Contains(words[1:], w) && plain(w) {
				fmt.Fprintln(c.App.Writer, w)
			}
		}
	}
}

// plain tells whether a word means itself to every shell: it ends up on a command
// line as it is.
func plain(word string) bool {
	const most = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.:_-[]"
	return strings.Trim(word, most) == ""
}

// completePending offers what waits for a decision.
func completePending(c *cli.Context) {
	completeThen(c, func(s *sandbox) (words []string) {
		var list []control.Pending
		_ = s.call("GET", "/v1/pending", nil, &list) // nothing to offer, then
		for _, p := range list {
			words = append(words, join(p.Host, p.Port))
		}
		return words
	})
}

// completeGrants offers what was decided.
func completeGrants(c *cli.Context) {
	completeThen(c, func(s *sandbox) (words []string) {
		var list []control.Grant
		_ = s.call("GET", "/v1/grants", nil, &list) // nothing to offer, then
		for _, g := range list {
			words = append(words, join(g.Host, g.Port))
		}
		return words
	})
}

func init() {
	for _, c := range []*cli.Command{statusCommand, logCommand, eventsCommand, metricsCommand, pendingCommand, grantsCommand, reloadCommand} {
		c.BashComplete = completeIDs
	}
	approveCommand.BashComplete, denyCommand.BashComplete = completePending, completePending
	revokeCommand.BashComplete = completeGrants
}
