package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

// The scripts ask the program itself what may come next.
const (
	bashCompletion = `_nemoclawctl() {
  local cur=${COMP_WORDS[COMP_CWORD]}
  local words
  words=$("${COMP_WORDS[@]:0:COMP_CWORD}" --generate-bash-completion 2>/dev/null)
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
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
func completeIDs(c *cli.Context) {
	if c.NArg() > 0 {
		return
	}
	sandboxes, err := all()
	if err != nil {
		return
	}
	for _, s := range sandboxes {
		fmt.Fprintln(c.App.Writer, short(s.ID))
	}
}

func init() {
	for _, c := range []*cli.Command{statusCommand, logCommand, pendingCommand, approveCommand, denyCommand, reloadCommand} {
		c.BashComplete = completeIDs
	}
}
