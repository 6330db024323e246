"""Questions about lessons 11 to 17: devices, several teachers, searches, other sensors, mistakes, and language."""

from __future__ import annotations

from course.quiz.question import QuizQuestion, right, wrong

BEYOND = (
    QuizQuestion(
        "11",
        "outputs_not_scores",
        "Would the check notice?",
        "An exported file is held against the network that it was made from. Why are logits compared, and not the "
        "accuracies of the two?",
        (
            wrong(
                "Logits are equal to the last bit in every runtime, if all is well.",
                "They are not: additions are done in another order, so a float file needs a tolerance.",
            ),
            wrong(
                "Accuracy cannot be measured outside of PyTorch, and logits can.",
                "Whoever has the logits of a file and the labels has its accuracy.",
            ),
            right(
                "A wrong weight moves nearly all logits and may cost no accuracy.",
                "A score forgives errors until they add up. Outputs show them at once.",
            ),
            wrong(
                "A file of whole numbers has logits but no accuracy of its own.",
                "It has both. Its logits differ more, so its check has to ask for less.",
            ),
        ),
    ),
    QuizQuestion(
        "11",
        "instructions",
        "A budget of time",
        "An emulator counts the instructions that a network takes on a microcontroller. Divided by the clock rate they "
        "make 200 ms. What can be promised?",
        (
            right(
                "It will not be faster than that on a chip of one instruction a cycle.",
                "A count can exclude a network. Waiting for memory and branches comes on top.",
            ),
            wrong(
                "It takes 200 ms on the board, since the instructions are the same.",
                "Instructions are not cycles: some take two, and the flash makes the processor wait.",
            ),
            wrong(
                "It manages five pictures a second or more, with some reserve left.",
                "It manages five at the very most. The reserve has the wrong sign.",
            ),
            wrong(
                "Nothing, because an emulator executes other instructions than a chip.",
                "It executes those of the chip, one by one. Their number is exact.",
            ),
        ),
    ),
    QuizQuestion(
        "12",
        "disagree",
        "What is there to average?",
        "When is the mean of several teachers' answers clearly better than the best of them?",
        (
            wrong(
                "When they learned from the same pictures in the same order",
                "Then they are alike, make the same mistakes, and an average has nothing to mend.",
            ),
            right(
                "When they are about equally good and err on different pictures",
                "A mean gains what its members get wrong apart. So measure first how often they disagree.",
            ),
            wrong(
                "When one of them is far better than all of the others are",
                "Then the others can hardly add anything, and may take something away.",
            ),
            wrong(
                "When nearly all of their answers agree, right or wrong ones",
                "Then the mean answers as each of them does.",
            ),
        ),
    ),
    QuizQuestion(
        "12",
        "loud_teacher",
        "A weight for each sample",
        "One of five teachers has learned wrong class numbers and is very sure of them. Why does it harm a mean "
        "of logits more than a mean of probabilities?",
        (
            wrong(
                "The softmax of a mean of logits is no distribution any more.",
                "It is one: the geometric mean of the five, made to add up to 1.",
            ),
            wrong(
                "A mean of probabilities leaves out whoever is outvoted by the rest.",
                "It leaves out nobody. Everyone has a fifth, and no more than a fifth.",
            ),
            wrong(
                "A wrong teacher has small probabilities, but large logits.",
                "A sure one has a probability near 1, for a wrong class.",
            ),
            right(
                "Logits have no upper limit, so one who is sure outweighs four.",
                "A probability ends at 1. In the mean of logits, one teacher can veto a class for all.",
            ),
        ),
    ),
    QuizQuestion(
        "13",
        "luck",
        "The winner's curse",
        "The best of many trials promises a validation accuracy that its setting does not reach again with "
        "fresh seeds. Why, if nobody made a mistake?",
        (
            wrong(
                "The fresh seeds were unlucky, and some more of them will reach it.",
                "On average they are neither lucky nor unlucky. The trial was lucky.",
            ),
            wrong(
                "The search has fitted the student's weights to validation pictures.",
                "No weight was trained on them. One trial out of many was chosen by them.",
            ),
            right(
                "It was chosen for its luck as well, and luck does not come back.",
                "The more contenders and the noisier a run, the more the best of them is flattered.",
            ),
            wrong(
                "A setting is only good for the seed with which it was found.",
                "What a setting is worth stays. What goes is the part that the seed had given.",
            ),
        ),
    ),
    QuizQuestion(
        "13",
        "baseline_of_search",
        "What papers call automated distillation",
        "A search over losses finds one that beats a loss made by hand. With which comparison would you know that the "
        "search itself was worth something?",
        (
            wrong(
                "With the same search once more, and with ten times as many trials",
                "It may find another loss. Against what that counts is still open.",
            ),
            right(
                "With random search in the same space, which costs as much",
                "The gain may belong to the space, or to tuning that the loss by hand did not get.",
            ),
            wrong(
                "With the best trial's accuracy on the validation pictures",
                "By that it was chosen, so that number is flattered.",
            ),
            wrong(
                "With the loss made by hand, taught by a teacher that is larger",
                "Then two things differ at once, and neither is the search.",
            ),
        ),
    ),
    QuizQuestion(
        "14",
        "mixed_pairs",
        "Wrong pairs",
        "The recordings of two sensors were paired wrongly, by a clock that was off. Why is that easily "
        "overlooked in the training?",
        (
            right(
                "The targets are as sure as ever, and the whole loss falls, through the labels.",
                "A comparison tells, or the soft loss alone, or a look at pairs before: do both sensors move together?",
            ),
            wrong(
                "The student never sees the other sensor, so pairs cannot matter.",
                "The teacher sees it, and what it says becomes the target of the student.",
            ),
            wrong(
                "The few true labels outweigh whatever the teacher says at each step.",
                "Both parts pull at each step, with the weights that alpha gives them.",
            ),
            wrong(
                "The teacher is unsure about wrong pairs, so it hardly teaches then.",
                "It sees its own sensor alone, and that is a perfectly ordinary recording.",
            ),
        ),
    ),
    QuizQuestion(
        "14",
        "unit",
        "Ten persons, five splits",
        "Thousands of windows of ten persons are at hand, two of whom are tested in each of five splits. Why is the "
        "interval over the splits, and not over the windows?",
        (
            wrong(
                "Over windows it would be too wide to show any gain at all.",
                "It would be very narrow, and too narrow to be true.",
            ),
            wrong(
                "A person has an exercise as label, and a window has none.",
                "Windows have labels. That is not the point.",
            ),
            wrong(
                "Windows overlap in time, and persons cannot be compared in pairs.",
                "They can: each is tested with and without pairs, and the difference is taken.",
            ),
            right(
                "Windows of a person are alike, and new persons are what counts.",
                "The question is what a watch does for somebody who buys it. For that, ten persons are ten "
                "observations at most: two who are tested by the same networks count as one.",
            ),
        ),
    ),
    QuizQuestion(
        "15",
        "fine_curve",
        "What would accuracy have told?",
        "The loss of a distillation falls smoothly, and the student becomes as good as students usually are. What does "
        "this show about the part that the teacher has in it?",
        (
            wrong(
                "That the answers belong to the pictures that the student sees",
                "With the answers of other pictures the loss falls as well.",
            ),
            wrong(
                "That the gradient of the soft loss reaches the student's weights",
                "If the teacher's logits stand on both sides, it is zero, and the labels go on teaching.",
            ),
            right(
                "Nothing: it can look like this with the teacher switched off",
                "Labels alone make good students. Controls, and probes of the loss, show whether a teacher is heard.",
            ),
            wrong(
                "That temperature and weight are about right for this teacher",
                "A pull that is a hundred times too weak leaves the same smooth curve.",
            ),
        ),
    ),
    QuizQuestion(
        "17",
        "direction",
        "Two directions of one divergence",
        "A small student of a language model learns by reverse KL, KL(student || teacher), in place of forward KL. "
        "What is to be expected of it?",
        (
            wrong(
                "Real text gets more probable to it, and its own text less plausible.",
                "That is the side of forward KL: it weighs by the teacher, whose turns must not be improbable.",
            ),
            wrong(
                "Both get better, if the temperature is chosen anew for that loss.",
                "What a small student cannot say is lost either way. Temperature does not make it larger.",
            ),
            wrong(
                "Nothing changes, for both directions vanish at the same student.",
                "At one that equals its teacher they do. This one is too small to become it.",
            ),
            right(
                "Its own text gets more plausible, and real text less probable to it.",
                "It weighs by the student: where that gives much, the teacher must too. Rare turns may be given up.",
            ),
        ),
    ),
    QuizQuestion(
        "17",
        "padding",
        "Padding is no text",
        "Names of different lengths are filled up to one length. How do you see whether a distillation loss counts "
        "what was filled up?",
        (
            right(
                "Append padding to a batch: the loss must stay as it was.",
                "If it moves, the mean is over text and something else.",
            ),
            wrong(
                "Train for a while: a loss with padding in it does not fall.",
                "It falls, for the teacher's answers at padding can be learned, and easily.",
            ),
            wrong(
                "Draw some names: those of such a student are all too long.",
                "Nothing of the kind has to follow. The student learns its letters, with a part of the gradient.",
            ),
            wrong(
                "Repeat it with another seed: the two losses must not agree.",
                "Two seeds differ a little in any case, and a wrong mean is wrong in both.",
            ),
        ),
    ),
)
