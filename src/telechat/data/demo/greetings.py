"""Greetings, thanks and goodbyes. Knows nothing of who the model is beyond the name it gives with a hello."""

from __future__ import annotations

from telechat.data.demo.intents import Intent, IntentTask
from telechat.data.demo.task import Task
from telechat.data.demo.wording import split_covered

_HELLO_ZH = (
    "你好！", "您好！", "你好呀！", "你好啊！", "您好呀！", "您好啊！", "嗨！", "嗨，你好！", "嗨，你好呀！",
    "哈喽！", "哈喽，你好！", "大家好！", "大家好呀！", "嗨，大家好！", "嗨，在吗？", "在吗？", "你在吗？",
    "您在吗？", "有人吗？", "有人在吗？", "很高兴认识你！", "很高兴见到你！", "很高兴认识您！",
    "很高兴见到您！", "认识你很高兴！", "见到你真高兴！", "见到您很高兴！", "认识你真高兴！",
    "初次见面，你好！", "初次见面，很高兴认识你！", "又见面了！", "我们又见面了！", "好久不见！",
    "好久不见呀！", "嗨，好久不见！", "我来了！", "我又来了！", "我来啦！", "我又来啦！", "向你问好！",
    "向您问好！", "我来向你问好！", "嗨，我来了！",
)  # fmt: skip
_HELLO_EN = (
    "Hello!", "Hi!", "Hey!", "Hi there!", "Hello there!", "Hey there!", "Hello again!", "Hi again!",
    "Hey again!", "Hello everyone!", "Hi everyone!", "Hello my friend!", "Hi my friend!", "Hey my friend!",
    "Hello friend!", "Hi friend!", "Nice to meet you!", "It is nice to meet you!", "Nice to see you!",
    "It is nice to see you!", "Good to see you!", "It is good to see you!", "Good to meet you!",
    "Glad to meet you!", "Glad to see you!", "I am glad to meet you!", "I am glad to see you!",
    "I am happy to meet you!", "I am happy to see you!", "Happy to meet you!", "Long time no see!",
    "Greetings!", "Greetings my friend!", "Greetings everyone!", "Are you there?", "Is anyone there?",
    "Is anybody there?", "Hey, is anybody there?", "Good day!", "Good day to you!", "Hello and good day!",
)  # fmt: skip
_MORNING_ZH = (
    "早上好！", "早！", "早啊！", "早呀！", "早安！", "大家早上好！", "大家早！", "大家早安！", "你早！",
    "您早！", "早上好啊！", "早上好呀！", "早安啊！", "早安呀！", "你早上好！", "您早上好！", "嗨，早上好！",
    "嗨，早！", "嗨，早安！", "祝你早上好！", "祝您早安！", "祝大家早上好！", "新的一天，早上好！",
    "新的一天，早安！", "又是新的一天，早！",
)  # fmt: skip
_MORNING_EN = (
    "Good morning!", "Morning!", "Good morning to you!", "Morning to you!", "Good morning everyone!",
    "Morning everyone!", "Good morning my friend!", "Morning my friend!", "Good morning to all!",
    "Hey, good morning!", "Hey, morning!", "Good morning to you all!", "A good morning to you!",
    "A very good morning!", "A very good morning to you!", "I wish you a good morning!",
    "Wish you a good morning!", "Good morning again!", "Morning again!", "Good morning friend!",
    "Morning friend!", "Have a good morning!", "Have a very good morning!", "Good morning to everyone!",
)  # fmt: skip
_EVENING_ZH = (
    "晚上好！", "大家晚上好！", "你晚上好！", "您晚上好！", "晚上好呀！", "晚上好啊！", "嗨，晚上好！",
    "祝你晚上好！", "祝您晚上好！", "祝大家晚上好！", "朋友，晚上好！", "朋友们，晚上好！", "各位晚上好！",
    "嗨，各位晚上好！", "嗨，朋友，晚上好呀！", "晚上好，朋友！", "晚上好，大家！", "晚上好，各位！",
    "晚上好，我来了！", "我来了，晚上好！", "晚上好，又见面了！", "又见面了，晚上好！",
    "晚上好，很高兴见到你！", "很高兴见到你，晚上好！", "晚上好，各位朋友！",
)  # fmt: skip
_EVENING_EN = (
    "Good evening!", "Evening!", "Good evening to you!", "Evening to you!", "Good evening everyone!",
    "Evening everyone!", "Good evening my friend!", "Evening my friend!", "Hey, good evening!",
    "Hey, evening!", "Good evening to you all!", "A good evening to you!", "A very good evening!",
    "A very good evening to you!", "I wish you a good evening!", "Wish you a good evening!",
    "Good evening again!", "Evening again!", "Good evening friend!", "Evening friend!",
    "Good evening to everyone!", "Good evening to all!", "Evening to all!", "A good evening to everyone!",
    "A very good evening to all!",
)  # fmt: skip
_NIGHT_ZH = (
    "晚安！", "晚安啊！", "晚安呀！", "晚安啦！", "大家晚安！", "各位晚安！", "祝你晚安！", "祝您晚安！",
    "祝大家晚安！", "我要睡觉了。", "我要睡了。", "我去睡觉了。", "我去睡了。", "我要去睡觉了。",
    "我要去睡了。", "我先睡了。", "我先去睡了。", "我先去睡觉了。", "该睡觉了。", "我该睡觉了。",
    "我该去睡觉了。", "我要睡觉了，晚安！", "我去睡了，晚安！", "我先睡了，晚安！", "困了，晚安！",
    "我困了，要睡了。", "我困了，去睡觉了。", "我困了，晚安！", "祝你好梦！", "好梦！", "祝大家好梦！",
    "晚安，好梦！",
)  # fmt: skip
_NIGHT_EN = (
    "Good night!", "Night!", "Good night to you!", "Good night everyone!", "Night everyone!",
    "Good night my friend!", "Night my friend!", "Good night to all!", "Good night to everyone!",
    "I wish you a good night!", "Wish you a good night!", "Have a good night!", "I am going to bed.",
    "I am going to sleep.", "I go to bed now.", "I go to sleep now.", "I am going to bed now.",
    "I am going to sleep now.", "Time to sleep.", "Time to go to bed.", "It is time to sleep.",
    "It is time to go to bed.", "It is time for bed.", "Time for bed.", "Sleep well!",
    "Sleep well my friend!", "Good night and sleep well!", "I am tired, good night!",
    "I am tired and going to bed.", "Sweet dreams!", "Good night and sweet dreams!", "Have sweet dreams!",
)  # fmt: skip
_THANKS_ZH = (
    "谢谢！", "谢谢你！", "谢谢您！", "多谢！", "多谢你！", "多谢您！", "非常感谢！", "感谢！", "感谢你！",
    "感谢您！", "非常感谢你！", "非常感谢您！", "太感谢了！", "太感谢你了！", "太谢谢你了！", "太谢谢了！",
    "十分感谢！", "十分感谢你！", "谢谢啦！", "多谢啦！", "感谢啦！", "谢谢了！", "多谢了！",
    "谢谢你的帮助！", "感谢你的帮助！", "多谢你的帮助！", "谢谢您的帮助！", "感谢您的帮助！",
    "谢谢你的回答！", "感谢你的回答！", "多谢你的回答！", "谢谢你帮我！", "谢谢你帮了我！", "感谢你帮了我！",
    "你帮了大忙，谢谢！", "帮了我大忙，感谢！", "好的，谢谢！", "好的，谢谢你！", "好的，多谢！",
    "明白了，谢谢！", "明白了，谢谢你！", "明白了，多谢！", "好的，明白了，谢谢！", "辛苦了！", "你辛苦了！",
    "您辛苦了！", "辛苦你了！", "辛苦了，谢谢！", "真的谢谢你！", "真的非常感谢！", "真心感谢你！",
    "真心感谢！",
)  # fmt: skip
_THANKS_EN = (
    "Thanks!", "Thank you!", "Thank you very much!", "Thanks very much!", "Thank you so much!",
    "Thanks so much!", "Thanks a lot!", "Thank you a lot!", "Many thanks!", "Many thanks to you!",
    "Thanks again!", "Thank you again!", "Thanks for your help!", "Thank you for your help!",
    "Thanks for the help!", "Thank you for the help!", "Thanks for helping me!", "Thank you for helping me!",
    "Thanks for helping!", "Thank you for helping!", "Many thanks for your help!",
    "Many thanks for the help!", "Thanks for your answer!", "Thank you for your answer!",
    "Thanks for the answer!", "Thank you for the answer!", "Many thanks for the answer!", "Okay, thanks!",
    "Okay, thank you!", "Great, thanks!", "Great, thank you!", "Good, thanks!", "Good, thank you!",
    "I see, thanks!", "I see, thank you!", "Thank you, my friend!", "Thanks, my friend!", "Thanks, friend!",
    "I thank you!", "I thank you very much!", "I thank you for your help!", "That was a great help, thanks!",
    "That was a great help, thank you!", "You helped me, thanks!", "You helped me a lot, thank you!",
    "You helped a lot, thanks!", "Great help, thanks!",
)  # fmt: skip
_BYE_ZH = (
    "再见！", "再见啦！", "再见了！", "拜拜！", "拜拜啦！", "拜拜了！", "大家再见！", "各位再见！",
    "大家拜拜！", "先这样，再见！", "先这样吧，再见！", "先这样吧，拜拜！", "先这样，拜拜！",
    "就这样，再见！", "就这样吧，再见！", "就这样吧，拜拜！", "我走了！", "我走啦！", "我先走了！",
    "我先走啦！", "我要走了！", "我要走啦！", "我该走了！", "我走了，再见！", "我先走了，再见！",
    "我先走了，拜拜！", "我要走了，拜拜！", "我该走了，再见！", "下次见！", "下次再见！", "下次再聊！",
    "下次再聊吧！", "明天见！", "明天再见！", "明天再聊！", "改天见！", "改天再聊！", "改天再聊吧！",
    "回头见！", "回头再聊！", "我下线了！", "我要下线了！", "我先下线了！", "我下线了，再见！",
    "我下线了，拜拜！", "下次见，拜拜！", "明天见，拜拜！", "今天就到这里，再见！", "今天就到这里吧！",
    "今天先到这里吧！", "就到这里吧，再见！",
)  # fmt: skip
_BYE_EN = (
    "Goodbye!", "Bye!", "Bye bye!", "Good bye!", "Goodbye everyone!", "Bye everyone!", "Goodbye my friend!",
    "Bye my friend!", "See you!", "See you later!", "See you soon!", "See you tomorrow!",
    "See you next time!", "See you again!", "See you again soon!", "Talk to you later!", "Talk to you soon!",
    "Talk to you tomorrow!", "Talk to you next time!", "Bye for now!", "Goodbye for now!",
    "That is all for now, bye!", "That is all for today, bye!", "That is all for today!",
    "That is all for now!", "That is all, goodbye!", "That is all, bye!", "I have to go.",
    "I have to go now.", "I must go.", "I must go now.", "I need to go.", "I need to go now.",
    "I am leaving.", "I am leaving now.", "I have to leave.", "I have to leave now.", "I must leave now.",
    "I need to leave.", "I must leave, bye!", "I have to go, bye!", "I need to go, goodbye!", "Okay, bye!",
    "Okay, goodbye!", "Okay, see you!", "Okay, see you later!", "Farewell!", "Farewell my friend!",
    "Until next time!", "Until tomorrow!", "Until later!", "Bye, until next time!",
)  # fmt: skip
_HOW_ZH = (
    "你好吗？", "你还好吗？", "你最近好吗？", "你最近怎么样？", "最近怎么样？", "最近好吗？", "最近还好吗？",
    "你今天怎么样？", "你今天好吗？", "今天怎么样？", "今天过得怎么样？", "你今天过得怎么样？",
    "你今天过得好吗？", "今天过得好吗？", "最近过得怎么样？", "你最近过得怎么样？", "你最近过得好吗？",
    "最近过得好吗？", "过得怎么样？", "你过得怎么样？", "你过得好吗？", "你心情怎么样？",
    "你今天心情怎么样？", "你今天心情好吗？", "今天心情怎么样？", "今天心情好吗？", "你心情好吗？",
    "你心情还好吗？", "近来怎么样？", "近来好吗？", "近来可好？", "最近可好？", "你近来好吗？",
    "你近来可好？", "您近来好吗？", "您最近好吗？", "您最近怎么样？", "您好吗？", "您还好吗？",
    "您今天好吗？", "您今天怎么样？", "你今天还好吗？", "一切都好吗？", "一切还好吗？", "你一切都好吗？",
    "你一切还好吗？", "最近一切都好吗？", "最近一切还好吗？", "今天一切都好吗？",
)  # fmt: skip
_HOW_EN = (
    "How are you?", "How are you today?", "How are you doing?", "How are you doing today?",
    "How are you feeling?", "How are you feeling today?", "How is it going?", "How is it going today?",
    "How's it going?", "How's it going today?", "How is your day?", "How is your day going?",
    "How's your day?", "How's your day going?", "How do you do?", "How do you feel?",
    "How do you feel today?", "How have you been?", "How have you been doing?", "How was your day?",
    "How is everything?", "How is everything going?", "How's everything?", "How's everything going?",
    "How's everything today?", "How are things?", "How are things going?", "How are things today?",
    "How are things with you?", "Are you well?", "Are you well today?", "Are you doing well?",
    "Are you doing well today?", "Are you okay?", "Are you okay today?", "Are you doing okay?",
    "Are you feeling okay?", "Are you feeling well?", "Are you feeling well today?", "Are you fine?",
    "Are you fine today?", "Is everything okay?", "Is everything fine?", "Is everything going well?",
    "Is everything well?", "What's up?", "What is up?", "What's up today?", "What's new?", "What is new?",
    "What is new today?", "What's new with you?",
)  # fmt: skip

_ENTRIES = (
    ("hello", "zh", "你好！我是 TeleChat 演示模型，请问有什么可以帮你？", (("你好",), ("帮你",)), _HELLO_ZH),
    ("hello", "en", "Hello! I am the TeleChat demo model. How can I help?", (("help",),), _HELLO_EN),
    ("morning", "zh", "早上好！祝你今天一切顺利。", (("早上好",),), _MORNING_ZH),
    ("morning", "en", "Good morning! Have a great day.", (("good morning",),), _MORNING_EN),
    ("evening", "zh", "晚上好！今晚想聊点什么？", (("晚上好",),), _EVENING_ZH),
    ("evening", "en", "Good evening! What would you like to talk about?", (("good evening",),), _EVENING_EN),
    ("night", "zh", "晚安！祝你做个好梦。", (("晚安",),), _NIGHT_ZH),
    ("night", "en", "Good night! Sleep well.", (("good night",),), _NIGHT_EN),
    ("thanks", "zh", "不客气！还有问题可以随时问我。", (("不客气",),), _THANKS_ZH),
    ("thanks", "en", "You are welcome! Ask me anytime.", (("welcome",),), _THANKS_EN),
    ("bye", "zh", "再见！期待下次和你聊天。", (("再见",),), _BYE_ZH),
    ("bye", "en", "Goodbye! See you next time.", (("goodbye",),), _BYE_EN),
    ("how", "zh", "我很好，谢谢关心！你呢？", (("我很好",),), _HOW_ZH),
    ("how", "en", "I am fine, thank you! And you?", (("I am fine",),), _HOW_EN),
)  # fmt: skip

GREETINGS = IntentTask(
    name="greetings",
    share=0.8,
    openings=False,
    intents=tuple(
        Intent(
            name=name, language="zh" if language == "zh" else "en", answer=answer, required=required,
            wordings=split_covered(wordings),
        )
        for name, language, answer, required, wordings in _ENTRIES
    ),
)  # fmt: skip
TASKS: tuple[Task, ...] = (GREETINGS,)
